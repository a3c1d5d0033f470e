"""The public keys of an issuer: fetched when first needed, kept, and fetched again when a token names an unknown one.

https://www.rfc-editor.org/rfc/rfc7517
"""

import asyncio
from time import monotonic
from typing import Any

import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key

from api.auth.oidc.grants import IssuerConfig
from api.auth.oidc.issuer_documents import FAILURES, discovery, document, endpoint, session_with
from services.errors import Unavailable

PublicKey = RSAKey | ECKey | OKPKey

# Keys that are older are fetched again; if that fails, they are used until they are as old as the second time.
FRESH_SECONDS, USABLE_SECONDS = 3600.0, 86_400.0
# A token with an unknown key, which anybody can make, has the issuer asked at most this often.
RETRY_SECONDS = 10.0

log = structlog.get_logger(__name__)


class IssuerUnavailable(Unavailable):
    """The issuer's keys cannot be fetched: try again."""

    reason = "issuer-unavailable"


class IssuerKeys:
    """The keys of one issuer, for one process."""

    def __init__(self, config: IssuerConfig) -> None:
        self._config = config
        self._keys: dict[str | None, list[PublicKey]] = {}
        self._fetched_at = self._tried_at = -USABLE_SECONDS
        self._fetching = asyncio.Lock()

    async def find(self, key_id: str | None) -> list[PublicKey]:
        """The keys that may have signed a token with this key id; all keys for a token that names none.

        Raises `IssuerUnavailable` if keys were never fetched, or long ago.
        """
        now = monotonic()
        if now - self._fetched_at > FRESH_SECONDS or (key_id is not None and key_id not in self._keys):
            await self._fetch_again(now)
        if monotonic() - self._fetched_at > USABLE_SECONDS:
            raise IssuerUnavailable(f"The keys of {self._config.url} cannot be fetched: try again.")
        if key_id is None:
            return [key for keys in self._keys.values() for key in keys]
        return self._keys.get(key_id, [])

    async def _fetch_again(self, asked_at: float) -> None:
        """Fetch the keys, unless that was tried since this caller asked, or shortly before."""
        async with self._fetching:
            if self._tried_at > asked_at - RETRY_SECONDS:
                return
            self._tried_at = monotonic()
            try:
                self._keys = await self._fetched()
            except FAILURES as error:
                log.warning(
                    "The keys of an issuer could not be fetched.",
                    action="oidc.keys_away",
                    issuer=self._config.url,
                    cause=repr(error)[:200],
                )
            else:
                self._fetched_at = monotonic()

    async def _fetched(self) -> dict[str | None, list[PublicKey]]:
        config = self._config
        headers = {}
        if config.token_file is not None:
            headers["authorization"] = f"Bearer {config.token_file.read_text().strip()}"
        async with session_with(config) as session:
            url = config.keys_url
            if url is None:
                url = endpoint(await discovery(session, config, **headers), "jwks_uri", config)
            keys: dict[str | None, list[PublicKey]] = {}
            response = await session.get(url, allow_redirects=False, headers=headers)
            for each in (await document(response))["keys"]:
                key = _public_key(each)
                if key is not None:
                    keys.setdefault(key.kid, []).append(key)
            if not keys:
                raise ValueError("it publishes no key that can be used")
            return keys


def _public_key(published: Any) -> PublicKey | None:  # noqa: ANN401 - from JSON
    """The key; None for one that is not for signatures, or of a kind that is not used here, such as a shared secret."""
    if not isinstance(published, dict) or published.get("use", "sig") != "sig":
        return None
    try:
        key = import_key(published)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return key if isinstance(key, RSAKey | ECKey | OKPKey) else None
