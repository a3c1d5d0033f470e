"""Asking a pod whether it lives: one GET of its health page, which nobody may be locked out by."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import aiohttp
from pydantic_core import from_json
from yarl import URL

# What a health page says of itself fits in far less; the rest of a larger one is not read.
BODY_MAX_BYTES = 16 * 1024
UP_WITHOUT_HEALTH_PAGE = (404, 405)
USER_AGENT = "podium-probe"


@asynccontextmanager
async def probe_session(concurrency: int) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """The one client session of a process: it follows nothing, remembers nothing, keeps no connection."""
    connector = aiohttp.TCPConnector(limit=concurrency, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        headers={"User-Agent": USER_AGENT},
    ) as session:
        yield session


async def probe(session: aiohttp.ClientSession, url: str, agent_id: UUID, patience: timedelta) -> str | None:
    """Why what is at this address is no living pod of the agent; None if it is one."""
    try:
        async with asyncio.timeout(patience.total_seconds()) as timer:
            deadline = timer.when() or 0
            async with session.get(URL(url, encoded=True), allow_redirects=False, timeout=_NONE) as response:
                return verdict_of(response.status, await _body(response, deadline), agent_id)
    except TimeoutError:
        return f"no answer within {patience.total_seconds():g} s"
    except aiohttp.ClientConnectorDNSError:
        return "its host's name cannot be resolved"
    except aiohttp.ClientConnectorError as error:
        return f"cannot connect ({error.os_error.strerror or type(error.os_error).__name__})"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return f"no valid answer ({type(error).__name__})"


def verdict_of(status: int, body: bytes, agent_id: UUID) -> str | None:
    """What an answer means: None if a pod of this agent gave it, else what is wrong with it."""
    if not (200 <= status < 300 or status in UP_WITHOUT_HEALTH_PAGE):  # noqa: PLR2004 - HTTP
        return f"its health page answers with status {status}"
    named = _named_agent(body)
    if named is not None and named != str(agent_id):
        return f"the pod there belongs to another agent, {named}"
    return None


# The time is bounded outside.
_NONE = aiohttp.ClientTimeout(total=None)


async def _body(response: aiohttp.ClientResponse, deadline: float) -> bytes:
    """The beginning of the body, or none if it does not end in time: the status has been given."""
    loop = asyncio.get_running_loop()
    body = bytearray()
    try:
        async with asyncio.timeout_at(loop.time() + (deadline - loop.time()) / 2):
            async for chunk in response.content.iter_chunked(BODY_MAX_BYTES):
                body += chunk
                if len(body) > BODY_MAX_BYTES:
                    return b""
    except (TimeoutError, aiohttp.ClientError):
        return b""
    return bytes(body)


def _named_agent(body: bytes) -> str | None:
    """The agent that a JSON body says it belongs to."""
    try:
        said = from_json(body).get("agent_id")
    except (ValueError, AttributeError):
        return None
    return said if isinstance(said, str) and said else None
