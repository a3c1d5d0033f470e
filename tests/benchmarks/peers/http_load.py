"""Sends HTTP requests on several connections; each connection sends its next request when it has the answer.

Reads jobs from standard input, one JSON object per line: `host`, `port`, `connections`, `seconds`, and `requests`: the
texts of each connection, sent as they are; a connection repeats its own. Prints for each job a JSON object with
`seconds`, `answers`, `failures` (answers without a status of 2xx), `cpu_seconds` of this process, and the percentiles
`p50_ms` and `p99_ms` of the time of an answer. Ends with its input.
"""

import asyncio
import json
import re
import sys
from functools import partial
from time import perf_counter, process_time
from typing import Any, cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
# The end of an answer without a length, which comes in chunks.
_LAST_CHUNK = b"\r\n0\r\n\r\n"
END_OF_HEAD = b"\r\n\r\n"
UNKNOWN = -1


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, requests: list[bytes]) -> None:
        self._requests = requests
        self._received = b""
        self._size = UNKNOWN
        self._sent_at = self._until = 0.0
        self.answers = self.failures = 0
        self.milliseconds: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the requests."""
        self._transport = cast("asyncio.Transport", transport)

    def start(self, until: float) -> None:
        """Send the first request; the last one is sent before `until`."""
        self._until = until
        self._send()

    def data_received(self, data: bytes) -> None:
        """Count a complete answer and send the next request."""
        self._received = self._received + data if self._received else data
        if not self._complete():
            return
        now = perf_counter()
        self.answers += 1
        self.failures += not self._received.startswith(b"HTTP/1.1 2")
        self.milliseconds.append((now - self._sent_at) * 1000)
        if now < self._until:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail if the connection closes before the end of the measurement."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError(f"hung up after {self._received!r}"))

    def _complete(self) -> bool:
        if self._size == UNKNOWN:
            end = self._received.find(END_OF_HEAD)
            if end < 0:
                return False
            length = _LENGTH.search(self._received, 0, end + 2)
            if length is None:
                return self._received.endswith(_LAST_CHUNK)
            self._size = end + len(END_OF_HEAD) + int(length[1])
        return len(self._received) >= self._size

    def _send(self) -> None:
        self._received, self._size = b"", UNKNOWN
        self._sent_at = perf_counter()
        self._transport.write(self._requests[self.answers % len(self._requests)])


async def run(job: dict[str, Any]) -> dict[str, float]:
    """Send the requests of one job; returns the counts."""
    requests = [[each.encode() for each in own] for own in job["requests"]]
    loop = asyncio.get_running_loop()
    opened: list[Connection] = []
    for number in range(job["connections"]):
        connection = partial(Connection, requests[number % len(requests)])
        opened.append((await loop.create_connection(connection, job["host"], job["port"]))[1])
    began, cpu = perf_counter(), process_time()
    for each in opened:
        each.start(began + job["seconds"])
    await asyncio.gather(*(each.done for each in opened))
    seconds, cpu_seconds = perf_counter() - began, process_time() - cpu
    milliseconds = sorted(each for own in opened for each in own.milliseconds)
    return {
        "seconds": seconds,
        "answers": sum(each.answers for each in opened),
        "failures": sum(each.failures for each in opened),
        "cpu_seconds": cpu_seconds,
        "p50_ms": milliseconds[len(milliseconds) // 2],
        "p99_ms": milliseconds[len(milliseconds) * 99 // 100],
    }


async def main() -> None:
    """Do the jobs in their order."""
    loop = asyncio.get_running_loop()
    # In a thread, so that the connections of the last job can close meanwhile.
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        sys.stdout.write(json.dumps(await run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main())
