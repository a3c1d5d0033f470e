"""Calls to an agent's pod. A call is repeated only while it is certain that no bytes of it were sent."""

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
from api.http.limits import watch_peer
from services.egress import Denied, EgressRules, open_connector
from services.errors import DestinationDenied, PodiumError
from services.settings import Settings

# Most pods run uvicorn, which closes idle connections after 5 s: close them earlier.
KEEP_ALIVE_SECONDS = 4
# A restarting pod refuses connections for a moment; each pause is followed by one more attempt.
RETRY_PAUSES_SECONDS = (0.02, 0.06, 0.18)
SEND_WHOLE_BYTES = 64 * 1024
# Headers that the client library would add: the agent receives only those that its caller sent.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_VALID_STATUSES = range(200, 600)


class AgentUnreachable(ForwardingFailure):
    """The agent cannot be reached. Nothing was sent, so the call can be repeated."""

    counts_as_failure = True


class ConnectTimeout(ForwardingFailure):
    """The agent did not accept a connection in time. Nothing was sent, so the call can be repeated."""

    status = 504
    reason = "connect-timeout"
    counts_as_failure = True


class FirstByteTimeout(ForwardingFailure):
    """The agent did not start to answer in time. It may have acted on the call."""

    status = 504
    reason = "first-byte-timeout"
    sent = True
    counts_as_failure = True


class AgentHungUp(ForwardingFailure):
    """The agent closed the connection before it answered. It may have acted on the call."""

    reason = "agent-hung-up"
    sent = True


class AgentProtocolError(ForwardingFailure):
    """The agent's answer is not valid HTTP. The agent may have acted on the call."""

    reason = "agent-protocol-error"
    sent = True


@dataclass(frozen=True, slots=True)
class Call:
    """The request that is sent to the agent."""

    method: str
    url: str
    query: bytes
    headers: CIMultiDict[str]
    body: bytes

    @property
    def target(self) -> URL:
        """The URL as it is sent, without encoding it again."""
        query = f"?{self.query.decode('latin-1')}" if self.query else ""
        return URL(f"{self.url}{query}", encoded=True)


def connection_refused(error: PodiumError) -> bool:
    """Whether the pod's machine refused the connection: nothing listens at the address."""
    cause = error.__cause__
    return isinstance(cause, aiohttp.ClientConnectorError) and cause.os_error.errno == errno.ECONNREFUSED


@asynccontextmanager
async def upstream_session(settings: Settings) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """The HTTP client session of a process: it adds no headers, follows no redirects and stores no cookies."""
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
        # By default aiohttp repeats a GET or DELETE that it sent on a connection which the server had closed.
        session._retry_connection = False  # noqa: SLF001 - aiohttp has no public option for this
        yield session


async def call_agent(
    session: aiohttp.ClientSession, call: Call, settings: Settings, connect_seconds: float, *, retry: bool = True
) -> aiohttp.ClientResponse:
    """The agent's answer, read up to its headers; the caller closes it.

    A refused connection is retried at most three times within `connect_seconds`, unless `retry` is false. Raises
    `ForwardingFailure`, `DestinationDenied`.
    """
    if settings.dial_hosts:
        EgressRules.of(settings).check_host(call.target.raw_host or "")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + connect_seconds
    for pause in RETRY_PAUSES_SECONDS if retry else ():
        try:
            return await _attempt(session, call, settings, deadline - loop.time())
        except AgentUnreachable as exc:
            if not connection_refused(exc) or loop.time() + pause >= deadline:
                raise
        await asyncio.sleep(pause)
    return await _attempt(session, call, settings, deadline - loop.time())


async def _attempt(
    session: aiohttp.ClientSession, call: Call, settings: Settings, connect_seconds: float
) -> aiohttp.ClientResponse:
    # aiohttp starts its read timer once the connection is open, and again with each byte. The limit around it ends a
    # head that arrives byte by byte, and interim answers (1xx) without end.
    first_byte_seconds = settings.first_byte_timeout.total_seconds()
    try:
        async with asyncio.timeout(connect_seconds + first_byte_seconds):
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
        # The answer has begun: from here on the same timer limits the time between two chunks.
        reading.read_timeout = None if _is_event_stream(call, response) else settings.idle_timeout.total_seconds()
        reading.start_timeout()
        if reading.read_timeout is None and connection.transport is not None:
            watch_peer(connection.transport.get_extra_info("socket"))
    if response.status not in _VALID_STATUSES:
        response.close()
        raise AgentProtocolError(f"The agent answered with the invalid HTTP status {response.status}.")
    if not _has_clear_framing(response):
        response.close()
        raise AgentProtocolError("The agent's answer has a version or a transfer coding that is not allowed.")
    return response


def _has_clear_framing(response: aiohttp.ClientResponse) -> bool:
    """Whether the end of the answer is clear; aiohttp ignores codings other than `chunked` (RFC 9112, section 6.1)."""
    codings = [value.lower() for name, value in response.raw_headers if name.lower() == b"transfer-encoding"]
    if response.version == aiohttp.HttpVersion11:
        return not codings or codings == [b"chunked"]
    return response.version == aiohttp.HttpVersion10 and not codings


def _is_event_stream(call: Call, response: aiohttp.ClientResponse) -> bool:
    """Whether this is a stream on which an agent sends events when it has some: it may be silent for hours."""
    return call.method == "GET" and response.content_type == "text/event-stream"


def _payload(body: bytes) -> bytes | io.BytesIO | None:
    """The body for aiohttp. It sends a large one in pieces, so that other calls can run in between."""
    return io.BytesIO(body) if len(body) > SEND_WHOLE_BYTES else body or None


def _failure(error: Exception) -> PodiumError:
    if isinstance(error, aiohttp.ClientConnectorError):
        return DestinationDenied() if isinstance(error.os_error, Denied) else AgentUnreachable()
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ConnectTimeout()
    if isinstance(error, aiohttp.InvalidURL):
        return AgentUnreachable()
    # Any other error may have happened after bytes were sent.
    if isinstance(error, TimeoutError):
        return FirstByteTimeout()
    if isinstance(error, aiohttp.ServerDisconnectedError | OSError):
        return AgentHungUp()
    return AgentProtocolError()
