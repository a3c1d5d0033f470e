"""Checks of tokens: signature, issuer, audience and time, then the grant (https://www.rfc-editor.org/rfc/rfc7519)."""

from base64 import urlsafe_b64decode
from collections.abc import Sequence
from hashlib import sha256
from time import time
from typing import Any

import structlog
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwt import JWTClaimsRegistry
from pydantic_core import from_json

from api.auth.oidc.grants import Claims, IssuerConfig
from api.auth.oidc.issuer_keys import IssuerKeys, PublicKey
from services.domain.identity import Identity
from services.errors import PodiumError

TOKEN_MAX_BYTES = 16 * 1024
# A token that was accepted is accepted without another check for so long, and never after its end.
ACCEPTED_SECONDS = 60.0
# Of how many tokens one process remembers that.
MOST_ACCEPTED = 10_000
_PARTS = 3

log = structlog.get_logger(__name__)


class NoGrant(PodiumError):
    """This token is valid, but no grant is for its claims: see the file PODIUM_OIDC_FILE."""

    status = 403
    reason = "no-grant"


class Tokens:
    """Checks the tokens of all issuers in the file, for one process."""

    def __init__(self, issuers: Sequence[IssuerConfig]) -> None:
        self._issuers = {config.url: (config, IssuerKeys(config)) for config in issuers}
        self._accepted: dict[bytes, tuple[Identity, float]] = {}

    @property
    def configs(self) -> list[IssuerConfig]:
        """The issuers in the file."""
        return [config for config, _ in self._issuers.values()]

    async def claims(self, token: str, config: IssuerConfig, *, audience: str) -> Claims:
        """The claims of a valid token of this issuer, for this audience.

        Raises `JoseError`, `ValueError` and the like for any other, and `IssuerUnavailable` without keys.
        """
        if _issuer_of(token) != config.url:
            raise ValueError("it is no token of this issuer")
        _, keys = self._issuers[config.url]
        key_id = _json(token.split(".", maxsplit=1)[0]).get("kid")
        candidates = await keys.find(key_id if isinstance(key_id, str) else None)
        return _verified(token, candidates, config, audience)

    def recognizes(self, credential: str) -> bool:
        """Whether this is a token that names one of the issuers, valid or not."""
        return _issuer_of(credential) in self._issuers

    def accepted(self, token: str) -> Identity | None:
        """The identity of a token that was checked a short time ago."""
        identity, until = self._accepted.get(_digest(token), (None, 0.0))
        return identity if time() < until else None

    async def identity(self, token: str) -> Identity | None:
        """The identity of a valid token; None if it is not valid. Raises `NoGrant`, and `Unavailable` without keys."""
        config, _ = self._issuers[_issuer_of(token)]
        try:
            claims = await self.claims(token, config, audience=config.audience)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            log.info("A token was refused.", action="oidc.refused", issuer=config.url, cause=_cause(error))
            return None
        identity = config.identity(claims)
        if identity is None:
            raise NoGrant
        ends = claims["exp"] + config.clock_skew_seconds
        self._accepted.pop(_digest(token), None)
        self._accepted[_digest(token)] = identity, min(ends, time() + ACCEPTED_SECONDS)
        if len(self._accepted) > MOST_ACCEPTED:
            del self._accepted[next(iter(self._accepted))]
        return identity


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()


def _verified(token: str, keys: Sequence[PublicKey], config: IssuerConfig, audience: str) -> Claims:
    """The claims of a token that one of the keys has signed. Raises `JoseError` or `ValueError`."""
    failure: Exception = ValueError("none of the issuer's keys has the key id of the token")
    for key in keys:
        try:
            claims = jwt.decode(token, key, algorithms=config.algorithms).claims
        except (JoseError, ValueError, TypeError) as error:
            failure = error
            continue
        registry = JWTClaimsRegistry(
            leeway=int(config.clock_skew_seconds),
            iss={"essential": True, "value": config.url},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        registry.validate(claims)
        return claims
    raise failure


def _issuer_of(token: str) -> str:
    """What an unverified token says of its issuer; empty if it is no token."""
    parts = token.split(".")
    if len(parts) != _PARTS or len(token) > TOKEN_MAX_BYTES:
        return ""
    try:
        issuer = _json(parts[1]).get("iss")
    except (ValueError, TypeError):
        return ""
    return issuer if isinstance(issuer, str) else ""


def _json(part: str) -> dict[str, Any]:
    found = from_json(urlsafe_b64decode(part.encode("ascii") + b"=" * (-len(part) % 4)))
    if not isinstance(found, dict):
        raise TypeError("a part of the token is no JSON object")
    return found


def _cause(error: Exception) -> str:
    """Why a token was refused, without its content."""
    return type(error).__name__ if not isinstance(error, JoseError) else f"{type(error).__name__}: {error}"[:200]
