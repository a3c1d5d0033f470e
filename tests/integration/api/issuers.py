"""OpenID Connect issuers of this machine: they publish keys and sign tokens."""

from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from secrets import token_urlsafe
from time import time
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

from aiohttp import encode_basic_auth, web
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
    discoveries: int = 0
    away: bool = False
    client_id: str = "the-console"
    client_secret: str | None = None
    secret_in_form: bool = False
    """Whether a client proves itself with `client_secret_post` alone; else with `client_secret_basic`."""
    refusal: dict[str, str] = field(default_factory=lambda: {"error": "access_denied"})
    """What it answers for who does not agree."""
    who: dict[str, Any] = field(default_factory=dict)
    """The claims of who signs in."""
    tampered: dict[str, Any] = field(default_factory=dict)
    """Claims of ID tokens that are not as they should be."""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    """What each code that was not used yet was asked for with."""

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
async def running_issuer(host: str = "127.0.0.1") -> AsyncIterator[Issuer]:
    """An issuer with one RSA key, known under this name of this machine."""
    issuer = Issuer(keys=[_rsa_key()])

    async def discovery(_: web.Request) -> web.Response:
        issuer.discoveries += 1
        if issuer.away:
            return web.Response(status=503)
        methods = {"token_endpoint_auth_methods_supported": ["client_secret_post"]} if issuer.secret_in_form else {}
        return web.json_response(
            {
                "issuer": issuer.url,
                "jwks_uri": f"{issuer.url}/keys",
                "authorization_endpoint": f"{issuer.url}/authorize",
                "token_endpoint": f"{issuer.url}/token",
                **methods,
            }
        )

    async def keys(_: web.Request) -> web.Response:
        issuer.fetches += 1
        if issuer.away:
            return web.Response(status=503)
        published = [key.as_dict(private=False) for key in issuer.keys]
        return web.json_response({"keys": [*issuer.published, *published]})

    async def authorize(request: web.Request) -> web.Response:
        """A page on which a person agrees, or does not."""
        asked = dict(request.query)
        assert asked["response_type"] == "code"
        assert asked["client_id"] == issuer.client_id
        assert asked["code_challenge_method"] == "S256"
        code = token_urlsafe()
        issuer.codes[code] = asked
        back, state = asked["redirect_uri"], quote(asked["state"])
        allowed = f"code={code}&state={state}&iss={quote(issuer.url)}"
        body = (
            f'<title>Issuer</title><a id="allow" href="{back}?{allowed}">Allow</a>'
            f'<a id="deny" href="{back}?{urlencode(issuer.refusal)}&state={state}">Deny</a>'
        )
        return web.Response(text=body, content_type="text/html")

    async def link(request: web.Request) -> web.Response:
        return web.Response(
            text=f'<title>Link</title><a href="{request.query["to"]}">Link</a>', content_type="text/html"
        )

    async def tokens(request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        asked = issuer.codes.pop(form["code"], None)
        challenge = urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).decode().rstrip("=")
        secret = issuer.client_secret
        in_form, in_header = (secret, None) if issuer.secret_in_form else (None, secret)
        proof = None if in_header is None else encode_basic_auth(issuer.client_id, quote_plus(in_header))
        # One proof, and no other: https://www.rfc-editor.org/rfc/rfc6749#section-2.3
        proven = (form.get("client_secret"), request.headers.get("authorization")) == (in_form, proof)
        if (
            asked is None
            or not proven
            or asked["code_challenge"] != challenge
            or asked["redirect_uri"] != form["redirect_uri"]
            or form["client_id"] != issuer.client_id
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        claims = {"aud": issuer.client_id, "nonce": asked["nonce"], **issuer.who, **issuer.tampered}
        return web.json_response({"id_token": issuer.token(**claims), "token_type": "Bearer"})

    app = web.Application()
    app.router.add_get("/authorize", authorize)
    app.router.add_get("/link", link)
    app.router.add_post("/token", tokens)
    app.router.add_get("/.well-known/openid-configuration", discovery)
    app.router.add_get("/keys", keys)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    issuer.url = f"http://{host}:{port}"
    try:
        yield issuer
    finally:
        await runner.cleanup()
