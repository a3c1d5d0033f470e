"""Sends HTTP requests on several connections; each connection sends its next request when it has the answer.

Arguments: host, port, connections and seconds. Standard input: a JSON array with the requests of each connection, each
a text that is sent as it is; a connection repeats its own. Prints a JSON object with `seconds`, `answers` and
`failures`: how many answers did not have a status of 2xx.
"""

import asyncio
import json
import re
import sys
from functools import partial
from time import perf_counter
from typing import cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, requests: list[bytes], until: float) -> None:
        self._requests, self._until = requests, until
        self._received = b""
        self.answers = self.failures = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Count a complete answer and send the next request."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = _LENGTH.search(head + b"\r\n")
        assert length is not None, head
        if len(body) < int(length[1]):
            return
        self.answers += 1
        self.failures += not head.startswith(b"HTTP/1.1 2")
        if perf_counter() < self._until:
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
        self._transport.write(self._requests[self.answers % len(self._requests)])


async def main(host: str, port: int, connections: int, seconds: float) -> None:
    """Send the requests and print the counts."""
    requests = [[each.encode() for each in own] for own in json.load(sys.stdin)]
    loop, began = asyncio.get_running_loop(), perf_counter()
    opened = []
    for number in range(connections):
        connection = partial(Connection, requests[number % len(requests)], began + seconds)
        opened.append((await loop.create_connection(connection, host, port))[1])
    await asyncio.gather(*(each.done for each in opened))
    counts = {"answers": sum(each.answers for each in opened), "failures": sum(each.failures for each in opened)}
    json.dump({"seconds": perf_counter() - began, **counts}, sys.stdout)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
