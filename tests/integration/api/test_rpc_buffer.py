"""Memory for request bodies, and refusals before a body is read."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from aiohttp import web

from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, pausing, refused_address, running_pod
from tests.support.waiting import eventually

RPC = "/agents/name/bot/rpc"
OTHER = "/agents/name/other/rpc"
MIB = 1024 * 1024
LONG = timedelta(seconds=60)


@asynccontextmanager
async def upload(api: Api, head: str, body: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
    """A POST whose body has only begun; the answer can be read."""
    reader, writer = await asyncio.open_connection(*api.host_and_port)
    writer.write(f"POST {RPC} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode() + body)
    try:
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()


async def answer_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Status line and body of an answer with a JSON body."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readuntil(b"}}}")
    return head, body


async def test_announced_bytes_are_reserved(serve: Serve, pod: Pod) -> None:
    """A large body that does not fit is refused before it is sent; small bodies have a share of their own."""
    api = await serve(request_buffer_bytes=8 * MIB)
    await api.register("bot", "v1", acp_url=pod.url)
    async with upload(api, f"Content-Length: {4 * MIB}", b"{"):

        async def is_full() -> bool:
            return b"503" in (await large_upload())[0]

        async def large_upload() -> tuple[bytes, bytes]:
            async with upload(api, f"Content-Length: {3 * MIB}", b"{") as reader:
                return await answer_of(reader)

        await eventually(is_full, "the first upload has reserved its memory")
        head, body = await large_upload()
        assert b"retry-after: 1" in head.lower()
        assert b'"reason":"request-buffer-full"' in body
        assert (await api.post(RPC, {"id": 1})).status == 200
        assert (await api.call("POST", RPC, data=io.BytesIO(b"x" * (2 * MIB - 1)))).status == 200

    async def is_free() -> bool:
        return (await api.call("POST", RPC, data=io.BytesIO(b"x" * (4 * MIB)))).status == 200

    await eventually(is_free, "the caller's disconnect has released the memory")


async def test_bytes_without_an_announcement_count_as_they_arrive(serve: Serve, pod: Pod) -> None:
    """Of a chunked body; an upload that does not fit any more is refused."""
    api = await serve(request_buffer_bytes=8 * MIB)
    await api.register("bot", "v1", acp_url=pod.url)
    size = 3 * MIB + MIB // 2
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    async with upload(api, "Transfer-Encoding: chunked", chunk), upload(api, "Transfer-Encoding: chunked") as idle:
        await asyncio.sleep(0.1)

        async def is_full() -> bool:
            async with upload(api, "Transfer-Encoding: chunked", chunk) as reader:
                return b"request-buffer-full" in (await answer_of(reader))[1]

        await eventually(is_full, "the first upload has arrived")
        assert (await api.post(RPC, {"id": 1})).status == 200
        assert not idle.at_eof()


async def test_the_memory_is_free_once_the_answer_begins(serve: Serve) -> None:
    """Open streams do not hold the bodies of their calls."""
    api = await serve(request_buffer_bytes=8 * MIB)
    finish = asyncio.Event()
    async with running_pod(pausing(b"begun", finish, b"ended")) as pod, asyncio.timeout(30):
        await api.register("bot", "v1", acp_url=pod.url)
        streams = []
        for _ in range(4):
            response = await api.session.post(f"{api.url}{RPC}", data=io.BytesIO(b"x" * 4 * MIB))
            assert (response.status, await response.content.readany()) == (200, b"begun")
            streams.append(response)
        finish.set()
        assert [await response.read() for response in streams] == [b"ended"] * 4


async def test_the_circuit_breaker_is_asked_before_a_large_body_is_read(serve: Serve) -> None:
    """As is everything else that refuses a call: nothing of the body needs to be sent."""
    api = await serve(breaker_failures=1, breaker_pause=LONG)
    async with refused_address() as nowhere:
        await api.register("bot", "v1", acp_url=nowhere)
        (await api.post(RPC, {"id": 1})).rpc_error(502, "agent-unreachable")
        async with upload(api, f"Content-Length: {MIB}") as reader:
            assert b"breaker-open" in (await answer_of(reader))[1]
    agent = await api.register("bot", "v1", acp_url="http://127.0.0.1:1")
    await api.delete(f"/agents/{agent['id']}")
    async with upload(api, f"Content-Length: {MIB}") as reader:
        head, body = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 404 ")
        assert b"agent-not-found" in body


async def test_the_cap_is_asked_before_a_large_body_is_read(serve: Serve) -> None:
    """A deployment with too many calls in flight gets no more bodies; uploads do not count among its calls."""
    api = await serve(calls_per_deployment=1)
    finish = asyncio.Event()

    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        await finish.wait()
        return web.Response(text="done")

    async with running_pod(slow) as pod, asyncio.timeout(20):
        await api.register("bot", "v1", acp_url=pod.url)
        async with upload(api, f"Content-Length: {MIB}", b"{"):
            call = asyncio.create_task(api.post(RPC, {"id": 1}))

            async def refused() -> bool:
                async with upload(api, f"Content-Length: {MIB}") as reader:
                    try:
                        return b"too-many-calls" in (await asyncio.wait_for(answer_of(reader), 0.5))[1]
                    except TimeoutError:
                        return False

            await eventually(refused, "the first call is in flight")
        finish.set()
        assert (await call).body == b"done"


async def test_a_promote_while_a_body_is_read(api: Api) -> None:
    """The call goes to what serves when its body is complete."""
    answers = {}
    for version in ("v1", "v2"):

        async def answer(_: web.BaseRequest, version: str = version) -> web.StreamResponse:
            return web.json_response({"a": {"b": {"served": version}}})

        answers[version] = answer
    async with running_pod(answers["v1"]) as one, running_pod(answers["v2"]) as two:
        agent = await api.register("bot", "v1", acp_url=one.url)
        await api.register("bot", "v2", acp_url=two.url)
        reader, writer = await asyncio.open_connection(*api.host_and_port)
        head = f"POST {RPC} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MIB}\r\n\r\n"
        writer.write(head.encode() + b"x" * (MIB - 1))
        await asyncio.sleep(0.2)
        await api.promote(agent, "v2")
        writer.write(b"x")
        assert b"v2" in (await answer_of(reader))[1]
        writer.close()
        await writer.wait_closed()
