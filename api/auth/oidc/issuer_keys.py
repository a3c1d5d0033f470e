"""The public keys of an issuer: fetched when first needed, kept, and fetched again when a token names an unknown one.

https://openid.net/specs/openid-connect-discovery-1_0.html, https://www.rfc-editor.org/rfc/rfc7517
"""

import asyncio
import ssl
from time import monotonic
from typing import Any

import aiohttp
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key
from pydantic_core import from_json

from api.auth.oidc.grants import IssuerConfig
from services.errors import Unavailable

PublicKey = RSAKey | ECKey | OKPKey

DISCOVERY_PATH = "/.well-known/openid-configuration"
FETCH_SECONDS = 5.0
DOCUMENT_MAX_BYTES = 1024 * 1024
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
            except (aiohttp.ClientError, OSError, ValueError, TypeError, KeyError) as error:
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
        context = ssl.create_default_context(cafile=config.ca_file)
        headers = {"accept": "application/json"}
        if config.token_file is not None:
            headers["authorization"] = f"Bearer {config.token_file.read_text().strip()}"
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            url = config.keys_url
            if url is None:
                found = await _document(session, config.url.rstrip("/") + DISCOVERY_PATH)
                if found["issuer"] != config.url:
                    raise ValueError(f"its discovery document is of the issuer {str(found['issuer'])[:100]!r}")
                url = str(found["jwks_uri"])
                if not url.startswith(("https://", config.url)):
                    raise ValueError("its discovery document names keys without TLS")
            keys: dict[str | None, list[PublicKey]] = {}
            for each in (await _document(session, url))["keys"]:
                key = _public_key(each)
                if key is not None:
                    keys.setdefault(key.kid, []).append(key)
            if not keys:
                raise ValueError("it publishes no key that can be used")
            return keys


async def _document(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:  # noqa: PLR2004 - the HTTP status OK
            raise ValueError(f"{url} answers HTTP {response.status}")
        content = await response.content.read(DOCUMENT_MAX_BYTES + 1)
        while not response.content.at_eof() and len(content) <= DOCUMENT_MAX_BYTES:
            content += await response.content.read(DOCUMENT_MAX_BYTES + 1 - len(content))
    if len(content) > DOCUMENT_MAX_BYTES:
        raise ValueError(f"{url} answers more than {DOCUMENT_MAX_BYTES} bytes")
    found = from_json(content)
    if not isinstance(found, dict):
        raise TypeError(f"{url} answers no JSON object")
    return found


def _public_key(published: Any) -> PublicKey | None:  # noqa: ANN401 - from JSON
    """The key; None for one that is not for signatures, or of a kind that is not used here, such as a shared secret."""
    if not isinstance(published, dict) or published.get("use", "sig") != "sig":
        return None
    try:
        key = import_key(published)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return key if isinstance(key, RSAKey | ECKey | OKPKey) else None
