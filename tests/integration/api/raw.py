"""A connection to the API on which a test sends and reads bytes itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tests.integration.api.client import Api


@dataclass(frozen=True)
class RawAnswer:
    """One answer as it was sent."""

    status_line: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class RawConnection:
    """An open connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.writer.write(data)

    async def answer(self, *, until_end: bool = False) -> RawAnswer:
        """The next answer: its body has the announced length, or ends with the connection if `until_end`."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if until_end:
            return RawAnswer(status_line, headers, await self.reader.read())
        return RawAnswer(status_line, headers, await self.reader.readexactly(int(headers.get("content-length", 0))))

    async def ended(self) -> bytes:
        """What still arrives until the server closes the connection."""
        received = b""
        with suppress(ConnectionError):
            while piece := await self.reader.read(65_536):
                received += piece
        return received


@asynccontextmanager
async def connected(api: Api, *, seconds: float = 10) -> AsyncIterator[RawConnection]:
    """A connection, closed at the end; the whole test on it takes `seconds` at most."""
    reader, writer = await asyncio.open_connection(*api.host_and_port)
    try:
        async with asyncio.timeout(seconds):
            yield RawConnection(reader, writer)
    finally:
        writer.close()
