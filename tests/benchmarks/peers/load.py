"""Calls one URL on several connections; each connection sends its next call when it has the response.

Arguments: URL, connections and seconds. Prints a JSON array with the milliseconds of each call.
"""

import asyncio
import json
import sys
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import uvloop

from tests.benchmarks.peers.quick_agent import BODY

CALL = b'{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"content":"Hello"}}'


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, until: float) -> None:
        self._request, self._until = request, until
        self._received = b""
        self._began = 0.0
        self.milliseconds: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first call."""
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Check a complete response and send the next call."""
        self._received += data
        # Some servers answer in chunks; an empty chunk ends the response.
        if not self._received.endswith((BODY, BODY + b"\r\n0\r\n\r\n")):
            return
        assert self._received.startswith(b"HTTP/1.1 200 "), self._received
        now = perf_counter()
        self.milliseconds.append((now - self._began) * 1000)
        if now < self._until:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail if the connection closes before the end of the measurement."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError(f"hung up after {self._received!r}"))

    def _send(self) -> None:
        self._received = b""
        self._began = perf_counter()
        self._transport.write(self._request)


async def main(url: str, connections: int, seconds: float) -> None:
    """Make the calls and print the milliseconds of each."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    host, port = parts.hostname, parts.port
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(CALL)}\r\n\r\n".encode() + CALL
    loop, until = asyncio.get_running_loop(), perf_counter() + seconds
    callers = [
        (await loop.create_connection(lambda: Caller(request, until), host, port))[1] for _ in range(connections)
    ]
    await asyncio.gather(*(caller.done for caller in callers))
    json.dump([each for caller in callers for each in caller.milliseconds], sys.stdout)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
