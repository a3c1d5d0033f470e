"""Agents' pods: real HTTP servers that record the requests they receive."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """One received request."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for key, value in self.headers if key.lower() == name]


@dataclass
class Pod:
    """A running pod."""

    url: str
    seen: list[Seen] = field(default_factory=list)
    answer: bytes | None = None
    """What a `raw_pod` sends."""


async def plain_answer(_: web.BaseRequest) -> web.StreamResponse:
    """A JSON-RPC result."""
    return web.json_response({"jsonrpc": "2.0", "id": 1, "result": "ok"})


def pausing(first: bytes, resume: asyncio.Event, rest: bytes) -> Handler:
    """A handler that sends `first`, waits for `resume`, and then sends `rest`."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(first)
        await resume.wait()
        await response.write(rest)
        return response

    return answer


@asynccontextmanager
async def running_pod(
    handler: Handler = plain_answer, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Pod]:
    """A pod that answers every path with this handler; on a free port if `port` is 0."""
    pod = Pod("")

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        headers = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in request.raw_headers]
        pod.seen.append(Seen(request.method, request.path_qs, headers, await request.content.read()))
        return await handler(request)

    runner = web.ServerRunner(web.Server(handle, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    host, bound = runner.addresses[0]
    pod.url = f"{'https' if tls else 'http'}://{host}:{bound}"
    try:
        yield pod
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_pod(answer: bytes | None, *, close: bool = True) -> AsyncIterator[Pod]:
    """A pod that reads a request and answers with these bytes, or (None) not at all."""
    pod = Pod("", answer=answer)
    writers: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        pod.seen.append(Seen(head.split(b" ", 1)[0].decode(), "", [], b""))
        if pod.answer is not None:
            writer.write(pod.answer)
            await writer.drain()
        if close:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    pod.url = f"http://{host}:{port}"
    try:
        async with server:
            yield pod
            for writer in writers:
                writer.close()
    finally:
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


@asynccontextmanager
async def silent_port() -> AsyncIterator[int]:
    """A port that accepts connections and never sends anything."""
    writers: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


@asynccontextmanager
async def refused_address() -> AsyncIterator[str]:
    """An address that refuses connections."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    yield f"http://{host}:{port}"
