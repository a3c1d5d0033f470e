"""The health probe of a pod: one GET of its health page."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import aiohttp
from pydantic_core import from_json
from yarl import URL

from services.egress import Denied, EgressRules, Server, open_connector
from services.errors import DestinationDenied
from services.settings import Settings

# A health page needs far less. The prober does not read beyond this.
BODY_MAX_BYTES = 16 * 1024
UP_WITHOUT_HEALTH_PAGE = (404, 405)
USER_AGENT = "podium-probe"


class Prober:
    """Probes pods over HTTP. Both the API and the janitor use it."""

    def __init__(self, session: aiohttp.ClientSession, rules: EgressRules) -> None:
        self._session = session
        self._rules = rules

    async def ask(self, address: str, agent_id: UUID, time_limit: timedelta) -> str | None:
        """The reason why the probe of this address failed; None if a healthy pod of the agent answered."""
        try:
            url = URL(address, encoded=True)
            self._rules.check_host(url.raw_host or "")
            async with asyncio.timeout(time_limit.total_seconds()) as timer:
                async with self._session.get(url, allow_redirects=False) as response:
                    return failure_of(response.status, await _body(response, timer.when() or 0), agent_id)
        except TimeoutError:
            return f"no answer within {time_limit.total_seconds():g} s"
        except DestinationDenied as error:
            return error.message
        except aiohttp.ClientConnectorDNSError:
            return "its host's name cannot be resolved"
        except aiohttp.ClientConnectorError as error:
            return _connect_failure(error.os_error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"no valid answer ({type(error).__name__})"


@asynccontextmanager
async def open_prober(settings: Settings, *own: Server, concurrency: int = 0) -> AsyncGenerator[Prober, None]:
    """A prober under the egress rules of the gateway. It follows no redirects and keeps no cookies or connections."""
    async with (
        open_connector(settings, *own, limit=concurrency, force_close=True) as connector,
        aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": USER_AGENT},
            timeout=aiohttp.ClientTimeout(total=None),  # each probe sets its own time limit
        ) as session,
    ):
        yield Prober(session, EgressRules.of(settings))


def failure_of(status: int, body: bytes, agent_id: UUID) -> str | None:
    """The reason why this response is a failure; None if it is healthy and names no other agent."""
    if not (200 <= status < 300 or status in UP_WITHOUT_HEALTH_PAGE):  # noqa: PLR2004 - HTTP
        return f"its health page answers with status {status}"
    named = _agent_named_in(body)
    if named is not None and named != str(agent_id):
        return f"the pod there belongs to another agent, {named}"
    return None


def _connect_failure(error: OSError) -> str:
    if isinstance(error, Denied):
        return str(error)
    return f"cannot connect ({os.strerror(error.errno) if error.errno else type(error).__name__})"


async def _body(response: aiohttp.ClientResponse, deadline: float) -> bytes:
    """The whole body; empty if it is too large or takes over half of the remaining time. The status decides then."""
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


def _agent_named_in(body: bytes) -> str | None:
    """`agent_id` of a JSON body, if it is a non-empty string."""
    try:
        agent_id = from_json(body).get("agent_id")
    except (ValueError, AttributeError):
        return None
    return agent_id if isinstance(agent_id, str) and agent_id else None
