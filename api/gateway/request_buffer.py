"""Memory for request bodies: bounded for the whole process, with a share that large bodies cannot take.

The gateway reads each body whole before it forwards it, so that it knows whether a call was sent. Slow uploads would
otherwise hold any amount of memory.
"""

from types import TracebackType
from typing import Self

from services.errors import Unavailable
from services.settings import Settings

# About what the server holds of a connection in any case. Most calls are far smaller.
SMALL_BYTES = 64 * 1024
_LARGE_BODIES_SHARE = 0.75


class RequestBufferFull(Unavailable):
    """Too many bytes of requests are in memory: try again when some calls have ended."""

    reason = "request-buffer-full"
    retry_after_seconds = 1


class BufferedBody:
    """The memory of one request body; use it as a context manager."""

    def __init__(self, buffer: "RequestBuffer") -> None:
        self._buffer = buffer
        self._reserved = 0
        self.content = b""

    def __enter__(self) -> Self:
        """The body; nothing is reserved yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release what is still reserved."""
        self.release()

    def reserve(self, size: int) -> None:
        """Reserve `size` bytes in total for this body. Raises `RequestBufferFull`."""
        if size > self._reserved:
            self._buffer.add(size - self._reserved, large=size > SMALL_BYTES)
            self._reserved = size

    def release(self) -> None:
        """Drop the content and release its memory."""
        self._buffer.remove(self._reserved)
        self._reserved = 0
        self.content = b""


class RequestBuffer:
    """The bytes of all request bodies that the process holds: announced by their callers, or received."""

    def __init__(self, settings: Settings) -> None:
        # A body of the largest size fits in any case.
        self._limit = max(settings.request_buffer_bytes, 2 * settings.rpc_max_bytes)
        self._limit_of_large = max(int(self._limit * _LARGE_BODIES_SHARE), settings.rpc_max_bytes)
        self.bytes = 0

    def body(self) -> BufferedBody:
        """The memory of one more body."""
        return BufferedBody(self)

    def add(self, size: int, *, large: bool) -> None:
        """Count `size` more bytes. Raises `RequestBufferFull` if they do not fit."""
        if self.bytes + size > (self._limit_of_large if large else self._limit):
            raise RequestBufferFull
        self.bytes += size

    def remove(self, size: int) -> None:
        """Count `size` bytes less."""
        self.bytes -= size
