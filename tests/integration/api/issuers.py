"""OpenID Connect issuers of this machine: they publish keys and sign tokens."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from time import time
from typing import Any

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

AUDIENCE = "podium"
SigningKey = RSAKey | ECKey


@dataclass
class Issuer:
    """A running issuer."""

    url: str = ""
    keys: list[SigningKey] = field(default_factory=list)
    published: list[Any] = field(default_factory=list)
    """Further keys, as they are published."""
    fetches: int = 0
    away: bool = False

    def token(
        self, *, key: SigningKey | OctKey | None = None, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """A token that is valid for a minute, with these claims and headers; None leaves one out."""
        signing = key or self.keys[-1]
        now = int(time())
        complete = {"iss": self.url, "aud": AUDIENCE, "sub": "amy", "iat": now, "exp": now + 60, **claims}
        algorithm = {"RSA": "RS256", "EC": "ES256", "oct": "HS256"}[signing.key_type]
        return jwt.encode(
            _given({"alg": algorithm, "kid": signing.kid, **(header or {})}),
            _given(complete),
            signing,
            algorithms=["RS256", "RS512", "ES256", "HS256"],
        )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def a_signing_key(kid: str | None) -> SigningKey:
    """A new key with this id."""
    return ECKey.generate_key("P-256", {"kid": kid} if kid else None, private=True)


@cache
def _rsa_key() -> RSAKey:
    """The first key of all issuers: it takes long to make one."""
    return RSAKey.generate_key(2048, {"kid": "first", "use": "sig"}, private=True)


@asynccontextmanager
async def running_issuer() -> AsyncIterator[Issuer]:
    """An issuer with one RSA key."""
    issuer = Issuer(keys=[_rsa_key()])

    async def discovery(_: web.Request) -> web.Response:
        if issuer.away:
            return web.Response(status=503)
        return web.json_response({"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"})

    async def keys(_: web.Request) -> web.Response:
        issuer.fetches += 1
        if issuer.away:
            return web.Response(status=503)
        published = [key.as_dict(private=False) for key in issuer.keys]
        return web.json_response({"keys": [*issuer.published, *published]})

    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", discovery)
    app.router.add_get("/keys", keys)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    issuer.url = f"http://{host}:{port}"
    try:
        yield issuer
    finally:
        await runner.cleanup()
