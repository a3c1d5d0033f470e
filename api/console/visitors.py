"""Who uses the console: from a key to a session, and back to an identity on each request.

A session keeps no key, only a `proof`: a value from which the key cannot be found, and which no longer holds when the
key changes, expires or is revoked.
"""

import hashlib
import hmac
from dataclasses import replace
from datetime import UTC, datetime
from time import time

from pydantic_core import from_json, to_json

from api.auth.authenticator import is_stored_key
from api.auth.oidc.grants import Claims, IssuerConfig
from api.console.sessions import MAX_AGE_SECONDS
from api.resources import Resources
from services.api_keys import same_secret
from services.domain.identity import API_KEY_HOLDER, EVERYBODY, Identity
from services.errors import Unauthorized
from services.identities.keys import digest_of
from services.settings import Settings

_STORED = "key:"
_SIGNED_IN = "oidc:"


async def prove(resources: Resources, key: str, address: str) -> str | None:
    """The proof of a valid key, for a session; None for anything else. Raises `TooManyFailures`."""
    try:
        identity = await resources.callers.identify([key], address)
    except Unauthorized:
        return None
    if identity is API_KEY_HOLDER:
        return _proof(resources.settings)
    # Tokens of other issuers are for programs: they expire within minutes.
    return f"{_STORED}{digest_of(key).hex()}" if is_stored_key(key) else None


async def visitor_of(resources: Resources, proof: str | None) -> Identity | None:
    """The identity of the session with this proof, as it is now; None if they have to sign in."""
    settings = resources.settings
    if proof is not None and proof.startswith(_STORED):
        return await resources.callers.keys.identity(bytes.fromhex(proof.removeprefix(_STORED)))
    if proof is not None and proof.startswith(_SIGNED_IN):
        return _signed_in(resources, proof.removeprefix(_SIGNED_IN))
    if not settings.keys_required:
        return EVERYBODY
    has_key = bool(settings.api_key.get_secret_value())
    return API_KEY_HOLDER if has_key and proof is not None and same_secret(proof, _proof(settings)) else None


def proof_of(config: IssuerConfig, claims: Claims) -> str:
    """The proof of who has signed in at an issuer: what decides about their grants, until the end of their token.

    Not a secret: the session's cookie is signed.
    """
    # Some issuers write milliseconds; no session lasts longer than its cookie.
    ends = min(time() + MAX_AGE_SECONDS, claims["exp"])
    content = {"iss": config.url, "exp": ends, "claims": config.granting(claims)}
    return f"{_SIGNED_IN}{to_json(content).decode()}"


def _signed_in(resources: Resources, content: str) -> Identity | None:
    """The identity by the grants as the file has them now; None after the end of the token."""
    found = from_json(content)
    config = resources.sign_ins.config(found["iss"])
    if config is None or time() >= found["exp"]:
        return None
    identity = config.identity(found["claims"])
    if identity is None:
        return None
    return replace(identity, expires_at=datetime.fromtimestamp(found["exp"], UTC))


def _proof(settings: Settings) -> str:
    secret = f"podium console proof {settings.secret_key.get_secret_value()}".encode()
    return hmac.new(secret, settings.api_key.get_secret_value().encode(), hashlib.sha256).hexdigest()
