"""Calls to an agent's pod. A call is repeated only while it is certain that no bytes of it were sent."""

import asyncio
import errno
import re
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.http import HttpProcessingError, RawResponseMessage
from multidict import CIMultiDict
from yarl import URL

from api.http.jsonrpc import ForwardingFailure
from api.http.limits import watch_peer
from services.connections import CleanConnector
from services.egress import Denied, EgressRules, open_connector
from services.errors import DestinationDenied, PodiumError
from services.settings import Settings

if TYPE_CHECKING:
    from aiohttp.connector import Connection

# Most pods run uvicorn, which closes idle connections after 5 s: close them earlier.
KEEP_ALIVE_SECONDS = 4
# A restarting pod refuses connections for a moment; each pause is followed by one more attempt.
RETRY_PAUSES_SECONDS = (0.02, 0.06, 0.18)
_INTERIM_STATUSES = frozenset(range(100, 200)) - {HTTPStatus.SWITCHING_PROTOCOLS}
_VALID_STATUSES = range(200, 600)
_INVALID_IN_HEAD = re.compile(r"[\x00\r\n]")


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


class AgentAnswer:
    """An agent's answer, read up to the end of its head. `close` ends it."""

    def __init__(self, message: RawResponseMessage, content: aiohttp.StreamReader, connection: "Connection") -> None:
        self.status = message.code
        self.version = message.version
        self.headers = message.headers
        self.raw_headers = message.raw_headers
        self.content = content
        """The body, as it arrives."""
        self.connection = connection
        """Without a protocol once the whole body has arrived."""
        # The connection is free for the next call as soon as the body has arrived, which may be now.
        content.on_eof(connection.release)

    @property
    def ok(self) -> bool:
        """Whether the status tells of no error."""
        return self.status < HTTPStatus.BAD_REQUEST

    @property
    def content_type(self) -> str:
        """The type of the body, without parameters, in lower case; empty if the agent does not say it."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def close(self) -> None:
        """Close the connection unless the whole body has arrived."""
        self.connection.close()


def open_upstream(settings: Settings) -> AbstractAsyncContextManager[CleanConnector]:
    """The connections of a process to all agents."""
    return open_connector(settings, (settings.host, settings.port), limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)


async def call_agent(
    upstream: CleanConnector, call: Call, settings: Settings, connect_seconds: float, *, retry: bool = True
) -> AgentAnswer:
    """The agent's answer; the caller closes it.

    A refused connection is retried at most three times within `connect_seconds`, unless `retry` is false. Raises
    `ForwardingFailure`, `DestinationDenied`.
    """
    if settings.dial_hosts:
        EgressRules.of(settings).check_host(call.target.raw_host or "")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + connect_seconds
    for pause in RETRY_PAUSES_SECONDS if retry else ():
        try:
            return await _attempt(upstream, call, settings, deadline - loop.time())
        except AgentUnreachable as exc:
            if not connection_refused(exc) or loop.time() + pause >= deadline:
                raise
        await asyncio.sleep(pause)
    return await _attempt(upstream, call, settings, deadline - loop.time())


async def _attempt(upstream: CleanConnector, call: Call, settings: Settings, connect_seconds: float) -> AgentAnswer:
    try:
        target = call.target
        try:
            connection = await upstream.connection(target, connect_seconds)
        except TimeoutError as exc:
            raise ConnectTimeout from exc
        answer = await _exchange(connection, call, target, settings.first_byte_timeout.total_seconds())
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as exc:
        raise _failure(exc) from exc
    _limit_pauses(call, answer, settings.idle_timeout.total_seconds())
    if answer.status not in _VALID_STATUSES:
        answer.close()
        raise AgentProtocolError(f"The agent answered with the invalid HTTP status {answer.status}.")
    if not _has_clear_framing(answer):
        answer.close()
        raise AgentProtocolError("The agent's answer has a version or a transfer coding that is not allowed.")
    return answer


async def _exchange(connection: "Connection", call: Call, target: URL, seconds: float) -> AgentAnswer:
    """Send the call, and wait for the head of its answer at most these seconds.

    The body is not sent in pieces: it is in memory, and a connection with an unsent rest is closed after the answer.
    """
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None or transport.is_closing():
        connection.close()
        raise aiohttp.ServerDisconnectedError
    try:
        protocol.set_response_params(read_until_eof=True, auto_decompress=False)
        transport.writelines((_head_of(call, target), call.body))
        async with asyncio.timeout(seconds):
            while True:
                message, content = await protocol.read()
                if message.code not in _INTERIM_STATUSES:
                    return AgentAnswer(message, content, connection)
    except BaseException:
        connection.close()
        raise


def _limit_pauses(call: Call, answer: AgentAnswer, seconds: float) -> None:
    """Limit the time between two chunks of the answer. On a stream of events, only a peer that is gone ends it."""
    protocol, transport = answer.connection.protocol, answer.connection.transport
    if protocol is None or transport is None:
        return
    if not _is_event_stream(call, answer):
        protocol.read_timeout = seconds
        protocol.start_timeout()
    else:
        watch_peer(transport.get_extra_info("socket"))


def _head_of(call: Call, target: URL) -> bytes:
    """The head of the request: the headers of the call, and those that frame it."""
    lines = [f"{call.method} {target.raw_path_qs} HTTP/1.1", f"Host: {target.host_port_subcomponent}"]
    lines += [f"{name}: {value}" for name, value in call.headers.items()]
    if call.body or call.method != "GET":
        lines.append(f"Content-Length: {len(call.body)}")
    head = "\r\n".join(lines)
    if _INVALID_IN_HEAD.search("".join(lines)):
        raise ValueError("A header of the call contains characters that are not allowed there.")
    return f"{head}\r\n\r\n".encode()


def _has_clear_framing(answer: AgentAnswer) -> bool:
    """Whether the end of the answer is clear; aiohttp ignores codings other than `chunked` (RFC 9112, section 6.1)."""
    codings = [value.lower() for name, value in answer.raw_headers if name.lower() == b"transfer-encoding"]
    if answer.version == aiohttp.HttpVersion11:
        return not codings or codings == [b"chunked"]
    return answer.version == aiohttp.HttpVersion10 and not codings


def _is_event_stream(call: Call, answer: AgentAnswer) -> bool:
    """Whether this is a stream on which an agent sends events when it has some: it may be silent for hours."""
    return call.method == "GET" and answer.content_type == "text/event-stream"


def _failure(error: Exception) -> PodiumError:
    if isinstance(error, aiohttp.ClientConnectorError):
        return DestinationDenied() if isinstance(error.os_error, Denied) else AgentUnreachable()
    if isinstance(error, aiohttp.InvalidURL):
        return AgentUnreachable()
    # Any other error may have happened after bytes were sent.
    if isinstance(error, TimeoutError):
        return FirstByteTimeout()
    if isinstance(error, aiohttp.ServerDisconnectedError | OSError):
        return AgentHungUp()
    return AgentProtocolError()
