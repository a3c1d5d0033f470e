"""One request and its answer: HTTP/1.0, answers without a body and offered upgrades, which uvicorn leaves undone.

It also joins the head of an answer with its body, and tells the application at once that the client has left.
"""

import asyncio
import sys
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Any

from httptools import HttpParserError, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.http.request_body import ON_DISCONNECT, BodyTimeout

_NO_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class JoinedHead(asyncio.Transport):
    """The transport of one answer: its head is sent together with what follows at once, in one system call.

    What follows later does not hold it back: the head waits only until the event loop goes on.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._began = False
        self._head = b""

    def write(self, data: Any) -> None:  # noqa: ANN401 - the buffer types of asyncio
        """Send `data` after what waits; the first data of all wait."""
        if not self._began:
            self._began, self._head = True, data
            self._loop.call_soon(self.flush)
        elif self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send what waits."""
        if self._head:
            head, self._head = self._head, b""
            if not self._transport.is_closing():
                self._transport.write(head)

    def close(self) -> None:
        """Close the connection after what waits is sent."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or will be."""
        return self._transport.is_closing()


class Exchange:
    """An ASGI application that runs the real one for one request."""

    def __init__(self, cycle: RequestResponseCycle, app: Any, loop: asyncio.AbstractEventLoop) -> None:  # noqa: ANN401 - an ASGI application
        self._cycle = cycle
        self._app = app
        self._ends_with_connection = False
        self._on_disconnect: Callable[[], None] | None = None
        self.is_late = False
        self.writes = cycle.transport = JoinedHead(cycle.transport, loop)

    async def __call__(self, scope: Any, _receive: object, _send: object) -> None:  # noqa: ANN401 - an ASGI scope
        """Run the application."""
        scope["extensions"] = {ON_DISCONNECT: self._watch}
        await self._app(scope, self._receive, self._send)

    def ends(self) -> None:
        """Tell the application if its client has disconnected. The connection calls this when it is lost."""
        if self._cycle.disconnected and self._on_disconnect is not None:
            act, self._on_disconnect = self._on_disconnect, None
            act()

    def _watch(self, act: Callable[[], None]) -> Callable[[], None]:
        """Call `act` once the client has disconnected; what is returned ends that."""
        # While reading is paused, nothing tells that the client has left.
        self._cycle.flow.resume_reading()
        self._on_disconnect = act
        self.ends()
        return self._forget

    def _forget(self) -> None:
        self._on_disconnect = None

    async def _receive(self) -> Any:  # noqa: ANN401 - an ASGI message
        """The next piece of the body, or a disconnect. Raises `BodyTimeout`."""
        message = await self._cycle.receive()
        if self.is_late and message["type"] == "http.request":
            raise BodyTimeout
        return message

    async def _send(self, message: Any) -> None:  # noqa: ANN401 - an ASGI message
        cycle = self._cycle
        if message["type"] != "http.response.start":
            if self._ends_with_connection and not message.get("more_body", False):
                cycle.expected_content_length = len(message.get("body", b""))
            await cycle.send(message)
            return
        names = {name for name, _ in message.get("headers", ())}
        has_body = message["status"] not in _NO_BODY
        # HTTP/1.0 has no chunks: without a length, the end of the connection is the end of the body.
        if cycle.scope["http_version"] == "1.0" and has_body and b"content-length" not in names:
            self._ends_with_connection = True
            cycle.chunked_encoding = False
            cycle.expected_content_length = sys.maxsize
        if b"date" not in names:
            message = {**message, "headers": [*message.get("headers", ()), (b"date", _date(int(time())))]}
        await cycle.send(message)
        if not has_body:
            # The length is that of the answer to a GET, not of this one.
            cycle.expected_content_length = 0


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def body_parser(protocol: HttpToolsProtocol) -> HttpRequestParser | None:
    """A parser of the body of the request whose head `protocol` has parsed; None if the request has no body.

    It is for requests that offer another protocol (`Upgrade`): the usual parser ends them with their head. It gives
    `protocol` the body and its end, and raises `HttpParserError` for anything that follows.
    """
    framing = [b"%b: %b\r\n" % header for header in protocol.headers if header[0] in _FRAMING]
    if not framing:
        return None
    parser = HttpRequestParser(_BodyOnly(protocol.on_body, protocol.on_message_complete))
    parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
    return parser


class _BodyOnly:
    def __init__(self, on_body: Callable[[bytes], None], on_message_complete: Callable[[], None]) -> None:
        self.on_body = on_body
        self.on_message_complete = on_message_complete
        self._begun = False

    def on_message_begin(self) -> None:
        if self._begun:
            raise HttpParserError
        self._begun = True
