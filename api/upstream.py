"""Calling an agent's pod: one attempt at a time, never a second one once bytes may have arrived."""

import asyncio
import errno
import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from api.jsonrpc import ForwardingFailure
from services.destinations import Destinations
from services.dialling import Denied, open_connector
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


@dataclass(slots=True)
class _Attempt:
    """How far one attempt has come."""

    timer: asyncio.Timeout
    first_byte_timeout: timedelta
    sent: bool = False

    def connected(self) -> None:
        """From here on bytes may arrive, and the agent's time runs."""
        self.sent = True
        self.timer.reschedule(asyncio.get_running_loop().time() + self.first_byte_timeout.total_seconds())


@asynccontextmanager
async def upstream_session(settings: Settings) -> AsyncGenerator[aiohttp.ClientSession, None]:
    """The one client session of a process: it adds nothing, follows nothing, remembers nothing."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(_connected)
    trace.on_connection_reuseconn.append(_connected)
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
            trace_configs=[trace],
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
    timer = asyncio.timeout(None)
    attempt = _Attempt(timer, settings.first_byte_timeout)
    try:
        async with timer:
            response = await session.request(
                call.method,
                call.target,
                data=_payload(call.body),
                headers=call.headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=connect_seconds),
                trace_request_ctx=attempt,
            )
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise _failure(exc, attempt) from exc
    if response.status not in _VALID_STATUSES:
        response.close()
        raise AgentProtocolError(f"The agent answered with status {response.status}, which is none.")
    return response


def _payload(body: bytes) -> bytes | io.BytesIO | None:
    """The body as the client library wants it: a large one piece by piece, so that others get their turn."""
    return io.BytesIO(body) if len(body) > IN_ONE_GO_BYTES else body or None


def _failure(error: Exception, attempt: _Attempt) -> PodiumError:
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, Denied):
        return DestinationDenied()
    if isinstance(error, TimeoutError):
        return FirstByteTimeout() if attempt.sent else ConnectTimeout()
    if not attempt.sent:
        return AgentUnreachable()
    if isinstance(error, aiohttp.ServerDisconnectedError | OSError):
        return AgentHungUp()
    return AgentProtocolError()


def _was_refused(error: BaseException | None) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED


async def _connected(_session: aiohttp.ClientSession, context: object, _parameters: object) -> None:
    attempt = getattr(context, "trace_request_ctx", None)
    if isinstance(attempt, _Attempt):
        attempt.connected()
