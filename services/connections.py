"""Kept connections to agents: one is used again only if nothing is left on it, so that no call gets another's answer.

HTTP/1.1 assigns answers to calls by their order alone (RFC 9112, section 9.3). If a server sends a byte that no call
asked for, each later answer on that connection could reach the wrong caller.
"""

import asyncio
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog
from aiohttp.client_proto import ResponseHandler
from yarl import URL

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection

# After an unexpected byte, each call to that address gets a new connection for this time: another unexpected byte could
# arrive after the next call was sent, and nothing could tell it from an answer then.
DISTRUSTED_SECONDS = 600.0
# A connection rests for this time after each answer, so that a byte that was sent right after the answer arrives before
# the next call. It costs one more connection for every 500 calls per second.
REST_SECONDS = 0.002
# An address takes a few hundred bytes.
REMEMBERED = 10_000
# Some systems cannot report that the peer has closed its side; there, such a connection only counts as readable.
_PEER_CLOSED = getattr(select, "POLLRDHUP", 0)
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)

log = structlog.get_logger(__name__)


class KeptConnection(ResponseHandler):
    """One connection. A byte that arrives while no call uses it closes it."""

    on_unexpected: Callable[[], None] | None = None
    """Called for a byte that arrives while the connection is in the pool; None while a call uses the connection."""
    _poll: "select.poll | None" = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Prepare the check of the socket."""
        super().connection_made(transport)
        if (channel := self._channel) is not None:
            self._poll = select.poll()
            self._poll.register(channel.fileno(), select.POLLIN | _PEER_CLOSED)

    def data_received(self, data: bytes) -> None:
        """Parse the data if a call waits for it, else close the connection."""
        # aiohttp passes no data when it resumes a paused parser, which can happen after the end of a call.
        if self.on_unexpected is None or not data:
            super().data_received(data)
        else:
            self.on_unexpected()
            self.abort()

    def set_response_params(self, **options: Any) -> None:  # noqa: ANN401 - the options of aiohttp's parser
        """Accept data again: aiohttp calls this right before it sends a request."""
        self.on_unexpected = None
        super().set_response_params(**options)

    def close(self) -> None:
        """Close the connection. What the peer has not taken of a request is dropped: nobody waits for it any more."""
        if self.has_unsent_data:
            self.abort()
        else:
            super().close()

    @property
    def should_close(self) -> bool:
        """Whether the connection cannot be used again: among others, after an answer that came before its request."""
        return super().should_close or self.has_unsent_data

    @property
    def has_unsent_data(self) -> bool:
        """Whether the peer has not taken all of a request."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    @property
    def has_another_message(self) -> bool:
        """Whether a message after the answer has been read."""
        return bool(self._buffer or self._tail)

    @property
    def has_more_than_its_answer(self) -> bool:
        """Whether data after the end of the answer have been read: a message, or a part of one."""
        if self.has_another_message:
            return True
        try:
            # None at a message boundary, else the message so far or an error. The next call gets a new parser.
            return self._parser is not None and self._parser.feed_eof() is not None
        except Exception:  # noqa: BLE001 - whatever aiohttp raises for an incomplete message
            return True

    @property
    def is_paused(self) -> bool:
        """Whether reading is paused, since the caller of a complete answer has not read all of it."""
        return self._reading_paused or self._buffer_paused

    @property
    def waiting(self) -> int:
        """The `select.poll` events of the socket now; 0 if nothing waits.

        The event loop may not have read data that the operating system has received.
        """
        if self.transport is None or self._poll is None:
            return select.POLLHUP
        events = self._poll.poll(0)
        return events[0][1] if events else 0

    def acknowledge(self) -> None:
        """Have the system acknowledge the answer now.

        A server without TCP_NODELAY holds a second small segment back until the first one is acknowledged, by default
        with the next call.
        """
        if _QUICK_ACK is not None and (channel := self._channel) is not None:
            with suppress(OSError):
                channel.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)

    @property
    def _channel(self) -> socket.socket | None:
        found: socket.socket | None = None if self.transport is None else self.transport.get_extra_info("socket")
        return found

    @property
    def has_unread_data(self) -> bool:
        """Whether the peer has sent data that nobody has read. Always false over TLS, whose own records may wait."""
        transport = self.transport
        if transport is None or transport.get_extra_info("ssl_object") is not None:
            return False
        waiting = self.waiting
        return bool(waiting & select.POLLIN) and not waiting & _PEER_CLOSED


class CleanConnector(aiohttp.TCPConnector):
    """A connector that reuses no connection with a byte too many, and for a time none to a server that sent one.

    It overrides methods of aiohttp that are not public. The tests fail if a new version of aiohttp does not call them.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the options of aiohttp's connector
        super().__init__(**options)
        self._factory = partial(KeptConnection, loop=self._loop)  # type: ignore[assignment]
        self._distrusted: dict[ConnectionKey, float] = {}

    async def connection(self, url: URL, connect_seconds: float) -> "Connection":
        """A connection to the server of this URL: a pooled one, else a new one. The caller releases or closes it.

        Raises `TimeoutError` after `connect_seconds`, and aiohttp's `ClientConnectorError`.
        """
        origin = url.origin()
        if (pooled := await self._get(_key_of(origin), [])) is not None:
            return pooled
        timeout = aiohttp.ClientTimeout(total=None, connect=connect_seconds)
        return await self.connect(aiohttp.ClientRequest("GET", origin), traces=[], timeout=timeout)

    async def _get(self, key: "ConnectionKey", traces: list[Any]) -> "Connection | None":
        """A pooled connection that has rested and on which nothing waits; None without one."""
        while self._has_rested(key) and (connection := await super()._get(key, traces)) is not None:
            protocol = connection.protocol
            assert isinstance(protocol, KeptConnection)
            has_more = protocol.has_more_than_its_answer
            if not (has_more or protocol.is_paused or protocol.waiting or protocol.should_close):
                return connection
            if has_more or protocol.has_unread_data:
                self._distrust(key)
            connection.close()
        return None

    def _release(self, key: "ConnectionKey", protocol: ResponseHandler, *, should_close: bool = False) -> None:
        """Put the connection into the pool, or close it. It is checked when it is reused.

        aiohttp calls this while it still parses the data that contain the end of the answer.
        """
        assert isinstance(protocol, KeptConnection)
        if protocol.has_another_message:
            self._distrust(key)
        super()._release(key, protocol, should_close=should_close or self._is_distrusted(key))
        protocol.on_unexpected = partial(self._distrust, key)
        protocol.acknowledge()

    def _has_rested(self, key: "ConnectionKey") -> bool:
        """Whether the connection that has been in the pool the longest has been there long enough."""
        pooled = self._conns.get(key)
        return pooled is not None and len(pooled) > 0 and monotonic() - pooled[0][1] >= REST_SECONDS

    def _distrust(self, key: "ConnectionKey") -> None:
        if not self._is_distrusted(key):
            log.warning(
                "An agent sent bytes that no call asked for. For a time its connections are not reused.",
                action="agent.unexpected_bytes",
                address=f"{key.host}:{key.port}",
                seconds=DISTRUSTED_SECONDS,
            )
        self._distrusted.pop(key, None)
        self._distrusted[key] = monotonic() + DISTRUSTED_SECONDS
        if len(self._distrusted) > REMEMBERED:
            del self._distrusted[next(iter(self._distrusted))]

    def _is_distrusted(self, key: "ConnectionKey") -> bool:
        until = self._distrusted.get(key)
        if until is None:
            return False
        if until > monotonic():
            return True
        del self._distrusted[key]
        return False


@lru_cache(maxsize=REMEMBERED)
def _key_of(origin: URL) -> "ConnectionKey":
    return aiohttp.ClientRequest("GET", origin).connection_key
