"""A way to a server that a test can freeze, take away, and bring back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PIECE_BYTES = 64 * 1024


class Proxy:
    """Passes bytes on in both directions, while it may."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open = asyncio.Event()
        self._open.set()
        self._pipes: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def freeze(self) -> None:
        """Connections stay, and new ones are taken; nothing passes."""
        self._open.clear()

    def thaw(self) -> None:
        """All that waited passes."""
        self._open.set()

    async def away(self) -> None:
        """Nothing listens any more, and what was open is closed."""
        assert self._server is not None
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def back(self) -> None:
        """Listen at the port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            for source, sink in ((reader, there_writer), (there_reader, writer)):
                pipe = asyncio.create_task(self._pass_on(source, sink))
                self._pipes.add(pipe)
                pipe.add_done_callback(self._pipes.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while piece := await source.read(PIECE_BYTES):
                    await self._open.wait()
                    sink.write(piece)
                    await sink.drain()
        finally:
            sink.close()


@asynccontextmanager
async def running_proxy(host: str, port: int) -> AsyncIterator[Proxy]:
    """A proxy to this server, on a port of its own."""
    proxy = Proxy(host, port)
    await proxy.back()
    try:
        yield proxy
    finally:
        proxy.thaw()
        await proxy.away()
