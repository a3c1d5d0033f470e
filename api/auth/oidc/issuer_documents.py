"""Requests to an issuer: its discovery document, its keys and tokens, of bounded size and time.

https://openid.net/specs/openid-connect-discovery-1_0.html
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from pydantic_core import from_json

from api.auth.oidc.grants import IssuerConfig

DISCOVERY_PATH = "/.well-known/openid-configuration"
FETCH_SECONDS = 5.0
DOCUMENT_MAX_BYTES = 1024 * 1024
# What goes wrong with an issuer that is away, or answers something else.
FAILURES = (aiohttp.ClientError, OSError, ValueError, TypeError, KeyError)
OK = 200


@asynccontextmanager
async def session_with(config: IssuerConfig) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that trusts the issuer's certificate authority, and gives up after five seconds."""
    context = ssl.create_default_context(cafile=config.ca_file)
    timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers={"accept": "application/json"}
    ) as session:
        yield session


async def discovery(session: aiohttp.ClientSession, config: IssuerConfig, **headers: str) -> dict[str, Any]:
    """The issuer's discovery document. Raises one of `FAILURES`."""
    found = await document(
        await session.get(config.url.rstrip("/") + DISCOVERY_PATH, allow_redirects=False, headers=headers)
    )
    if found["issuer"] != config.url:
        raise ValueError(f"its discovery document is of the issuer {str(found['issuer'])[:100]!r}")
    return found


def endpoint(found: dict[str, Any], name: str, config: IssuerConfig) -> str:
    """An address in the discovery document: with TLS, or below the issuer's own. Raises `ValueError`, `KeyError`."""
    url = str(found[name])
    if not url.startswith(("https://", config.url)):
        raise ValueError(f"its discovery document names {name} without TLS")
    return url


async def document(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The JSON object that the issuer has answered. Raises one of `FAILURES`."""
    async with response:
        if response.status != OK:
            raise ValueError(f"{response.url.with_query(None)} answers HTTP {response.status}")
        content = await response.content.read(DOCUMENT_MAX_BYTES + 1)
        while not response.content.at_eof() and len(content) <= DOCUMENT_MAX_BYTES:
            content += await response.content.read(DOCUMENT_MAX_BYTES + 1 - len(content))
    if len(content) > DOCUMENT_MAX_BYTES:
        raise ValueError(f"{response.url.with_query(None)} answers more than {DOCUMENT_MAX_BYTES} bytes")
    found = from_json(content)
    if not isinstance(found, dict):
        raise TypeError(f"{response.url.with_query(None)} answers no JSON object")
    return found
