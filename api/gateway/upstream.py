"""Calling an agent's pod: one attempt at a time, never a second one once bytes may have arrived."""

import asyncio
import errno
import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from api.http.jsonrpc import ForwardingFailure
from services.egress import Denied, open_connector
from services.egress_rules import Destinations
from services.errors import DestinationDenied, PodiumError
from services.settings import Settings

# Pods are mostly uvicorn, which closes idle connections after 5 s: let go of them before it does.
KEEP_ALIVE_SECONDS = 4
# A pod that restarts refuses for a moment; each pause is followed by one more attempt.
RETRY_PAUSES_SECONDS = (0.02, 0.06, 0.18)
IN_ONE_GO_BYTES = 64 * 1024
# What the client library would add by itself; an agent sees what its caller sent.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_VALID_STATUSES = range(200, 600)


class AgentUnreachable(ForwardingFailure):
    """The agent cannot be reached: nothing was sent, the call can be repeated."""

    says_agent_is_away = True


class ConnectTimeout(ForwardingFailure):
    """The agent did not accept a connection in time: nothing was sent, the call can be repeated."""

    status = 504
    reason = "connect-timeout"
    says_agent_is_away = True


class FirstByteTimeout(ForwardingFailure):
    """The agent did not start to answer in time; it may have acted on the call."""

    status = 504
    reason = "first-byte-timeout"
    sent = True
    says_agent_is_away = True


class AgentHungUp(ForwardingFailure):
    """The agent closed the connection before it answered; it may have acted on the call."""

    reason = "agent-hung-up"
    sent = True


class AgentProtocolError(ForwardingFailure):
    """The agent's answer is no valid HTTP; it may have acted on the call."""

    reason = "agent-protocol-error"
    sent = True


@dataclass(frozen=True, slots=True)
class Call:
    """What is sent to the agent."""

    method: str
    url: str
    query: bytes
    headers: CIMultiDict[str]
    body: bytes

    @property
    def target(self) -> URL:
        """The address as it goes on the wire: nothing of it is encoded anew."""
        query = f"?{self.query.decode('latin-1')}" if self.query else ""
        return URL(f"{self.url}{query}", encoded=True)


@asynccontextmanager
async def upstream_session(settings: Settings) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """The one client session of a process: it adds nothing, follows nothing, remembers nothing."""
    async with (
        open_connector(
            settings, (settings.host, settings.port), limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS
        ) as connector,
        aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_NOT_ADDED,
        ) as session,
    ):
        # The library repeats GET and DELETE on a connection that turns out to be closed, after it has sent them.
        session._retry_connection = False  # noqa: SLF001 - there is no public switch
        yield session


async def call_agent(session: aiohttp.ClientSession, call: Call, settings: Settings) -> aiohttp.ClientResponse:
    """The agent's answer, up to its headers; close it. Raises `ForwardingFailure`, `DestinationDenied`.

    A refused connection is tried again, at most three times and within the time for connecting.
    """
    if settings.dial_hosts:
        Destinations.of(settings).check_host(call.target.raw_host or "")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.connect_timeout.total_seconds()
    for pause in RETRY_PAUSES_SECONDS:
        try:
            return await _attempt(session, call, settings, deadline - loop.time())
        except AgentUnreachable as exc:
            if not _was_refused(exc.__cause__) or loop.time() + pause >= deadline:
                raise
        await asyncio.sleep(pause)
    return await _attempt(session, call, settings, deadline - loop.time())


async def _attempt(
    session: aiohttp.ClientSession, call: Call, settings: Settings, connect_seconds: float
) -> aiohttp.ClientResponse:
    # The library's timer for reading runs from the moment at which there is a connection.
    first_byte_seconds = settings.first_byte_timeout.total_seconds()
    try:
        response = await session.request(
            call.method,
            call.target,
            data=_payload(call.body),
            headers=call.headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_seconds, sock_read=first_byte_seconds),
        )
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise _failure(exc) from exc
    if (connection := response.connection) is not None and (reading := connection.protocol) is not None:
        # The answer has begun, and more is to come: from now on the same timer watches its pauses.
        reading.read_timeout = settings.idle_timeout.total_seconds()
        reading.start_timeout()
    if response.status not in _VALID_STATUSES:
        response.close()
        raise AgentProtocolError(f"The agent answered with status {response.status}, which is none.")
    return response


def _payload(body: bytes) -> bytes | io.BytesIO | None:
    """The body as the client library wants it: a large one piece by piece, so that others get their turn."""
    return io.BytesIO(body) if len(body) > IN_ONE_GO_BYTES else body or None


def _failure(error: Exception) -> PodiumError:
    if isinstance(error, aiohttp.ClientConnectorError):
        return DestinationDenied() if isinstance(error.os_error, Denied) else AgentUnreachable()
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ConnectTimeout()
    if isinstance(error, aiohttp.InvalidURL):
        return AgentUnreachable()
    # Anything else may have happened after bytes were sent.
    if isinstance(error, TimeoutError):
        return FirstByteTimeout()
    if isinstance(error, aiohttp.ServerDisconnectedError | OSError):
        return AgentHungUp()
    return AgentProtocolError()


def _was_refused(error: BaseException | None) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED
