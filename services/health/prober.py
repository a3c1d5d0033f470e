"""Asking a pod whether it lives: one GET of its health page, which nobody may be locked out by."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import aiohttp
from pydantic_core import from_json
from yarl import URL

from services.egress import Denied, Server, open_connector
from services.egress_rules import Destinations
from services.errors import DestinationDenied
from services.settings import Settings

# What a health page says of itself fits in far less; the rest of a larger one is not read.
BODY_MAX_BYTES = 16 * 1024
UP_WITHOUT_HEALTH_PAGE = (404, 405)
USER_AGENT = "podium-probe"


class Prober:
    """Asks pods, whichever process it is in."""

    def __init__(self, session: aiohttp.ClientSession, destinations: Destinations) -> None:
        self._session = session
        self._destinations = destinations

    async def ask(self, address: str, agent_id: UUID, time_limit: timedelta) -> str | None:
        """Why what is at this address is no living pod of the agent; None if it is one."""
        try:
            url = URL(address, encoded=True)
            self._destinations.check_host(url.raw_host or "")
            async with asyncio.timeout(time_limit.total_seconds()) as timer:
                async with self._session.get(url, allow_redirects=False) as response:
                    return verdict_of(response.status, await _body(response, timer.when() or 0), agent_id)
        except TimeoutError:
            return f"no answer within {time_limit.total_seconds():g} s"
        except DestinationDenied as error:
            return error.message
        except aiohttp.ClientConnectorDNSError:
            return "its host's name cannot be resolved"
        except aiohttp.ClientConnectorError as error:
            return _unconnected(error.os_error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"no valid answer ({type(error).__name__})"


@asynccontextmanager
async def open_prober(settings: Settings, *own: Server, concurrency: int = 0) -> AsyncGenerator[Prober, None]:
    """A prober: it follows nothing, remembers nothing, keeps no connection, and dials what the gateway may dial."""
    async with (
        open_connector(settings, *own, limit=concurrency, force_close=True) as connector,
        aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": USER_AGENT},
            timeout=aiohttp.ClientTimeout(total=None),  # bounded by whoever asks
        ) as session,
    ):
        yield Prober(session, Destinations.of(settings))


def verdict_of(status: int, body: bytes, agent_id: UUID) -> str | None:
    """What an answer means: None if a pod of this agent gave it, else what is wrong with it."""
    if not (200 <= status < 300 or status in UP_WITHOUT_HEALTH_PAGE):  # noqa: PLR2004 - HTTP
        return f"its health page answers with status {status}"
    named = _named_agent(body)
    if named is not None and named != str(agent_id):
        return f"the pod there belongs to another agent, {named}"
    return None


def _unconnected(error: OSError) -> str:
    if isinstance(error, Denied):
        return str(error)
    return f"cannot connect ({os.strerror(error.errno) if error.errno else type(error).__name__})"


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
