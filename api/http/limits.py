"""All limits of a client's connection: bytes and times of what it sends, and times of what it does not read.

docs/operations.md has a table of them. `ApiServer` calls `LimitedHttpProtocol.check` of each connection regularly: a
timer per request would cost more than all of these checks.
"""

import asyncio
import fcntl
import socket
import sys
import termios
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Self

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.http.exchange import Exchange, body_parser
from api.http.framing import is_ambiguous
from api.http.request_body import HEADERS_MAX_BYTES
from services.settings import Settings

# Of an answer, a client must read this much within the write timeout, or all that waits for it.
READ_MIN_BYTES = 16 * 1024
# How long a refused client may go on sending: closing at once would reset the connection and could destroy the answer.
LINGER_SECONDS = 1
# The largest pause between two checks. Short limits, as in tests, are checked more often.
CHECK_SECONDS = 1.0
# TCP keepalive finds a peer that is gone without a trace after 60 + 4 * 15 s.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The time limits, in seconds."""

    head: float
    body_idle: float
    body: float
    write: float
    keep_alive: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The limits in the settings."""
        return cls(
            head=settings.head_timeout.total_seconds(),
            body_idle=settings.body_idle_timeout.total_seconds(),
            body=settings.body_timeout.total_seconds(),
            write=settings.write_timeout.total_seconds(),
            keep_alive=settings.keep_alive_timeout.total_seconds(),
        )

    @property
    def check_seconds(self) -> float:
        """The pause between two checks."""
        return min(CHECK_SECONDS, min(self.head, self.body_idle, self.body, self.write, self.keep_alive) / 4)


class _Phase(Enum):
    """What the client has to send next. `IDLE`: nothing, but it may start another request."""

    HEAD = auto()
    BODY = auto()
    IDLE = auto()
    # The connection will be closed: whatever arrives is dropped.
    OVER = auto()


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection. It serves one request after the other, and closes when the client breaks a limit.

    Requests that arrive before the answer to the one before wait for it. If there are too many, or they came in one
    piece with that request, its answer is the last on this connection, and the client repeats the others on another
    one (RFC 9112, section 9.3.2).
    """

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*arguments, **options)
        self._limits = limits
        # A new connection has to send a head.
        self._phase = _Phase.HEAD
        self._phase_began = self._received_at = self._checked_at = self.loop.time()
        # Bytes of a head, of blank lines before it, of trailers or of chunk extensions since the last byte of a body.
        self._overhead_bytes = 0
        self._unread_bytes = 0
        self._unread_since = 0.0
        self._exchange: Exchange | None = None
        # What arrived after a request and before the end of its answer.
        self._early = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application whose answer is not complete."""
        super().connection_lost(exc)
        if self._exchange is not None:
            self._exchange.ends()

    def data_received(self, data: bytes) -> None:
        """Parse the data. Refuse the request if it is not valid or a limit of bytes is exceeded."""
        if self._phase is _Phase.OVER:
            return
        if self._phase is _Phase.IDLE and self._is_answering():
            self._early += data
            if len(self._early) > HEADERS_MAX_BYTES:
                self._serve_no_more()
            return
        self._received_at = self.loop.time()
        self._overhead_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as offer:
            self._ignore_upgrade(data[offer.args[0] :])
        except HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST)
        else:
            if self._overhead_bytes > HEADERS_MAX_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Begin a head. Raises `HttpParserError` if the answer to the request before is not complete."""
        if self._is_answering():
            raise HttpParserError
        super().on_message_begin()
        self._enter(_Phase.HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; drop a trailer, which nothing has checked."""
        if self._phase is _Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to serve the request. Raises `HttpParserError` if its head is ambiguous."""
        if is_ambiguous(self.parser.get_http_version(), self.parser.get_method(), self.url, self.headers):
            raise HttpParserError
        self._enter(_Phase.BODY)
        self._overhead_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._overhead_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._enter(_Phase.IDLE)
        self._overhead_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the time of an idle connection, or the next request."""
        self.server_state.total_requests += 1
        if self._exchange is not None:
            self._exchange.writes.flush()
        if self._phase is _Phase.IDLE:
            self._phase_began = self.loop.time()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def resume_writing(self) -> None:
        """Continue an answer: the client has read what waited for it."""
        self._unread_bytes = 0
        super().resume_writing()

    def check(self, now: float) -> None:
        """Close the connection, or end its request, if a limit of time is exceeded at `now` (the loop's clock)."""
        waited, lasted = now - self._checked_at, now - self._phase_began
        self._checked_at = now
        if self._is_unread(now):
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif self._phase is _Phase.HEAD:
            if lasted > self._limits.head:
                self._end_head()
        elif self._phase is _Phase.BODY:
            self._check_body(now, waited)
        elif not self._is_answering() and lasted > (
            LINGER_SECONDS if self._phase is _Phase.OVER else self._limits.keep_alive
        ):
            self.transport.close()

    def _end_head(self) -> None:
        """Answer 408 to a request that has begun; only close the connection if none has."""
        if self._overhead_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _check_body(self, now: float, waited: float) -> None:
        if self._is_answering() and (self.flow.read_paused or self.cycle.waiting_for_100_continue):
            # The client waits for the application to read.
            self._received_at = now
            self._phase_began += waited
        elif now - self._received_at > self._limits.body_idle or now - self._phase_began > self._limits.body:
            self._end_body()

    def _end_body(self) -> None:
        """Answer 408, or close the connection if an answer has begun."""
        assert self._exchange is not None
        if self.cycle.response_started:
            self.transport.abort()
            return
        self._serve_no_more()
        self._exchange.is_late = True
        self.cycle.message_event.set()

    def _is_unread(self, now: float) -> bool:
        """Whether the client has read too little of what waits for it, for too long."""
        buffered = self.transport.get_write_buffer_size()
        if buffered == 0:
            self._unread_bytes = 0
            return False
        # The operating system accepts more only after it has sent about a megabyte: its own queue shows what is read.
        size = buffered + _queued_bytes(self.transport)
        if self._unread_bytes == 0 or size <= self._unread_bytes - READ_MIN_BYTES:
            self._unread_bytes, self._unread_since = size, now
        self._unread_bytes = max(size, self._unread_bytes)
        return now - self._unread_since > self._limits.write

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Serve a request that offers another protocol like any other, but no request after it."""
        parser = body_parser(self)
        if parser is None:
            self._serve_no_more()
            return
        # The application starts after this call returns.
        self.cycle.keep_alive, self.cycle.more_body = False, True
        self.parser = parser
        self._enter(_Phase.BODY)
        if rest:
            self.data_received(rest)

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._phase_began = self.loop.time()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _serve_no_more(self) -> None:
        """Close the connection after the answer that is due."""
        self.cycle.keep_alive = False
        self._enter(_Phase.OVER)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer without the application and close the connection, but never send a second answer to one request."""
        if self._phase is _Phase.OVER:
            return
        if self._phase is _Phase.IDLE and self._is_answering():
            # What is wrong came after a complete request.
            self._serve_no_more()
            return
        if self._phase is _Phase.BODY and self.cycle.response_started:
            self.transport.abort()
            return
        if self._is_answering():
            # The application sees a disconnect, and its answer is not sent.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self._exchange is not None:
                self._exchange.writes.flush()
                self._exchange.ends()
        self.cycle = None  # type: ignore[assignment]  # as before the first request
        self._enter(_Phase.OVER)
        body = status.description.encode() or status.phrase.encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ndate: {formatdate(usegmt=True)}\r\n"
            f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - an ASGI application
        self._exchange = Exchange(cycle, app, self.loop)
        super()._start_asgi_task(cycle, self._exchange)


def _queued_bytes(transport: asyncio.Transport) -> int:
    """The bytes that the operating system has taken over and the peer has not acknowledged; 0 if it is unknown."""
    connection = transport.get_extra_info("socket")
    try:
        return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):
        return 0


def watch_peer(connection: socket.socket) -> None:
    """Have the operating system find out with TCP keepalive that the peer is gone, also while nothing is sent.

    Of a listening socket, accepted connections inherit it.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
