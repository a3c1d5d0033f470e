"""The limits of a client's connection: one test for each row of their table in docs/operations.md."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from api.http.request_body import HEADERS_MAX_BYTES
from services.api_keys import AGENT_KEY_PREFIX
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Handler, Pod, running_pod
from tests.integration.api.raw import connected
from tests.support.waiting import eventually

SHORT = timedelta(milliseconds=400)
LONG = timedelta(seconds=60)
RPC = "/agents/name/bot/rpc"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
KIB, MIB = 1024, 1024 * 1024
# State and timer in /proc/net/tcp.
ESTABLISHED, KEEPALIVE = "01", "02"


def a_post(path: str, *headers: str) -> bytes:
    """The head of a POST."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


async def test_bytes_of_a_head(api: Api) -> None:
    """431 as soon as the head exceeds its limit, and the connection is closed."""
    async with connected(api) as connection:
        connection.send(b"GET / HTTP/1.1\r\nx-endless: ")
        for _ in range(HEADERS_MAX_BYTES // KIB + 1):
            connection.send(b"v" * KIB)
        answer = await connection.answer()
        assert answer.status_line == "HTTP/1.1 431 Request Header Fields Too Large"
        assert answer.headers["connection"] == "close"
        assert answer.headers["date"].endswith(" GMT")
        assert await connection.ended() == b""


async def test_time_of_a_head(serve: Serve) -> None:
    """408 if a head that has begun is not complete in time, however steadily its bytes arrive."""
    api = await serve(head_timeout=SHORT)
    async with connected(api) as connection:
        connection.send(b"GET / HTTP/1.1\r\nx-slow: ")
        sending = asyncio.create_task(trickle(connection.writer))
        answer = await connection.answer()
        assert answer.status_line == "HTTP/1.1 408 Request Timeout"
        assert answer.headers["date"].endswith(" GMT")
        assert await connection.ended() == b""
        sending.cancel()


async def trickle(writer: asyncio.StreamWriter) -> None:
    """Send a byte every 50 ms."""
    while True:
        writer.write(b"v")
        await asyncio.sleep(0.05)


async def test_time_until_the_first_request(serve: Serve) -> None:
    """A new connection without a request is closed without an answer; blank lines are no request."""
    api = await serve(head_timeout=SHORT)
    async with connected(api) as silent, connected(api) as blank:
        blank.send(b"\r\n")
        assert await silent.ended() == b""
        assert b"200" not in await blank.ended()


async def test_time_between_requests(serve: Serve) -> None:
    """A kept connection lives for the keep-alive time after an answer, and no longer."""
    api = await serve(keep_alive_timeout=timedelta(seconds=1), head_timeout=SHORT)
    async with connected(api) as connection:
        for pause in (0.6, 0.6, 0):
            connection.send(LIVE)
            assert (await connection.answer()).status_line == "HTTP/1.1 200 OK"
            await asyncio.sleep(pause)
        async with asyncio.timeout(3):
            assert await connection.ended() == b""


async def test_blank_lines_between_requests(serve: Serve) -> None:
    """Blank lines are ignored, but do not prolong the life of an idle connection."""
    api = await serve(keep_alive_timeout=SHORT)
    async with connected(api) as connection:
        connection.send(LIVE)
        await connection.answer()
        connection.send(b"\r\n\r\n" + LIVE)
        await connection.answer()
        for _ in range(3):
            connection.send(b"\r\n")
            await asyncio.sleep(0.1)
        assert await connection.ended() == b""


async def test_endless_blank_lines(api: Api) -> None:
    """Blank lines count as bytes of the head that they precede."""
    async with connected(api) as connection:
        connection.send(LIVE)
        await connection.answer()
        for _ in range(HEADERS_MAX_BYTES // KIB + 1):
            connection.send(b"\r\n" * (KIB // 2))
        assert (await connection.answer()).status_line.startswith("HTTP/1.1 431 ")


@pytest.mark.parametrize("begun", [b"", b'{"na'])
@pytest.mark.parametrize("path", ["/agents/register", RPC])
async def test_a_pause_in_a_body(serve: Serve, pod: Pod, path: str, begun: bytes) -> None:
    """408 if a body does not begin or stops arriving; on every route, and the agent is not called."""
    api = await serve(body_idle_timeout=SHORT, body_timeout=LONG)
    await api.register("bot", "v1", acp_url=pod.url)
    async with connected(api) as connection:
        connection.send(a_post(path, "Content-Length: 100") + begun)
        answer = await connection.answer()
        assert answer.status_line == "HTTP/1.1 408 Request Timeout"
        assert answer.headers["connection"] == "close"
        assert b"body-timeout" in answer.body
        assert await connection.ended() == b""
    assert not pod.seen


@pytest.mark.parametrize("path", ["/agents/register", RPC])
async def test_time_of_a_whole_body(serve: Serve, pod: Pod, path: str) -> None:
    """408 if the body is not complete in time, however steadily its bytes arrive."""
    api = await serve(body_idle_timeout=LONG, body_timeout=SHORT)
    await api.register("bot", "v1", acp_url=pod.url)
    async with connected(api) as connection:
        connection.send(a_post(path, "Content-Length: 1000"))
        sending = asyncio.create_task(trickle(connection.writer))
        assert (await connection.answer()).status_line == "HTTP/1.1 408 Request Timeout"
        sending.cancel()
    assert not pod.seen


async def test_a_body_before_authentication(serve: Serve) -> None:
    """The limits hold while the key of an agent waits for the body, and after a refusal that came before the body."""
    api = await serve(api_key=SecretStr("k" * 32), body_idle_timeout=SHORT, keep_alive_timeout=LONG)
    async with connected(api) as connection:
        connection.send(a_post("/agents/register", f"x-agent-api-key: {AGENT_KEY_PREFIX}x", "Content-Length: 100"))
        assert (await connection.answer()).status_line == "HTTP/1.1 408 Request Timeout"
        assert await connection.ended() == b""
    async with connected(api) as connection:
        connection.send(a_post("/agents/register-build", "Content-Length: 100"))
        assert (await connection.answer()).status_line.startswith("HTTP/1.1 401 ")
        async with asyncio.timeout(3):
            assert await connection.ended() == b""


async def test_a_steady_upload_is_not_cut(serve: Serve, pod: Pod) -> None:
    """The limit of pauses starts again with each byte."""
    api = await serve(body_idle_timeout=SHORT, body_timeout=LONG)
    await api.register("bot", "v1", acp_url=pod.url)
    async with connected(api) as connection:
        connection.send(a_post(RPC, "Content-Length: 10"))
        for _ in range(10):
            connection.send(b"x")
            await asyncio.sleep(0.15)
        assert (await connection.answer()).status_line == "HTTP/1.1 200 OK"
    assert pod.seen[0].body == b"x" * 10


@pytest.mark.parametrize("piece", [b"x-t: " + b"v" * KIB + b"\r\n", b"v" * KIB])
async def test_bytes_of_trailers(api: Api, pod: Pod, piece: bytes) -> None:
    """431 for trailers above the limit of a head, in many lines or one; the agent is not called."""
    await api.register("bot", "v1", acp_url=pod.url)
    async with connected(api) as connection:
        connection.send(a_post(RPC, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\nx-first: ")
        for _ in range(8):
            for _ in range(HEADERS_MAX_BYTES // KIB):
                connection.send(piece)
            await asyncio.sleep(0.01)
        assert (await connection.answer()).status_line.startswith("HTTP/1.1 431 ")
        assert await connection.ended() == b""
    assert not pod.seen


async def test_bytes_of_chunk_extensions(api: Api, pod: Pod) -> None:
    """They have the same limit."""
    await api.register("bot", "v1", acp_url=pod.url)
    async with connected(api) as connection:
        connection.send(a_post(RPC, "Transfer-Encoding: chunked") + b"2;x=")
        for _ in range(8 * HEADERS_MAX_BYTES // KIB):
            connection.send(b"v" * KIB)
        assert (await connection.answer()).status_line.startswith("HTTP/1.1 431 ")
    assert not pod.seen


async def test_trailers_are_not_headers(serve: Serve, pod: Pod) -> None:
    """A trailer is accepted and dropped: it neither authenticates a call nor reaches the agent."""
    api = await serve(api_key=SecretStr("k" * 32))
    trailers = b"2\r\n{}\r\n0\r\nx-api-key: %b\r\nx-late: 1\r\n\r\n" % (b"k" * 32)
    async with connected(api) as connection:
        connection.send(a_post(RPC, "Transfer-Encoding: chunked") + trailers)
        assert (await connection.answer()).status_line.startswith("HTTP/1.1 401 ")
    free = await serve()
    await free.register("bot", "v1", acp_url=pod.url)
    async with connected(free) as connection:
        connection.send(a_post(RPC, "Transfer-Encoding: chunked") + trailers)
        assert (await connection.answer()).status_line == "HTTP/1.1 200 OK"
    assert pod.seen[0].body == b"{}"
    assert not pod.seen[0].header("x-late")


@asynccontextmanager
async def endless_pod(left: asyncio.Event) -> AsyncIterator[Pod]:
    """A pod whose answer never ends; it sets `left` when its caller is gone."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 64 * KIB)
        finally:
            left.set()

    async with running_pod(answer) as pod:
        yield pod


async def test_a_reader_that_does_not_read(serve: Serve) -> None:
    """Its connection is cut and its call ends, so that its slot is free again."""
    api = await serve(write_timeout=SHORT, calls_per_deployment=1)
    left = asyncio.Event()
    async with endless_pod(left) as pod, connected(api) as connection:
        await api.register("bot", "v1", acp_url=pod.url)
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        connection.send(a_post(RPC, "Content-Length: 2") + b"{}")
        await asyncio.wait_for(left.wait(), 8)

        async def slot_is_free() -> bool:
            async with api.session.post(f"{api.url}{RPC}", json={}) as answer:
                return answer.status == 200

        await eventually(slot_is_free, "another call gets the slot")


async def test_a_reader_that_does_not_read_the_end(serve: Serve) -> None:
    """The same after the whole answer was given to the operating system: the connection is not kept."""
    api = await serve(write_timeout=SHORT, keep_alive_timeout=SHORT)
    async with running_pod(lambda _: whole(b"x" * 30 * MIB)) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        with socket.create_connection(api.host_and_port) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(a_post(RPC, "Content-Length: 2") + b"{}")
            local = client.getsockname()

            async def cut() -> bool:
                return local[1] not in {peer for _, peer, _ in tcp_connections()}

            await asyncio.sleep(0.3)
            await eventually(cut, "the API has closed the connection", seconds=8)


async def whole(body: bytes) -> web.StreamResponse:
    """An answer with this body."""
    return web.Response(body=body)


async def test_a_slow_reader_is_not_cut(serve: Serve) -> None:
    """A client that takes its answer slowly, but steadily, keeps its connection."""
    api = await serve(write_timeout=timedelta(seconds=1))
    left = asyncio.Event()
    async with endless_pod(left) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * KIB)
            client.settimeout(0)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, api.host_and_port)
            await loop.sock_sendall(client, a_post(RPC, "Content-Length: 2") + b"{}")
            for _ in range(50):
                await loop.sock_recv(client, 8 * KIB)
                await asyncio.sleep(0.1)
            assert not left.is_set()


def events(resume: asyncio.Event, media_type: str) -> Handler:
    """A handler that sends an event, waits for `resume`, and then sends another one."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": media_type})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await resume.wait()
        await response.write(b"data: 2\n\n")
        return response

    return answer


async def test_a_silent_event_stream_is_not_cut(serve: Serve) -> None:
    """A GET stream of events may be silent for longer than other answers; TCP keepalive watches both connections."""
    api = await serve(idle_timeout=SHORT)
    resume = asyncio.Event()
    async with running_pod(events(resume, "text/event-stream; charset=utf-8")) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        async with api.session.get(f"{api.url}{RPC}", headers={"accept": "text/event-stream"}) as answer:
            assert await answer.content.readany() == b"data: 1\n\n"
            await asyncio.sleep(4 * SHORT.total_seconds())
            connections = tcp_connections()
            resume.set()
            assert await answer.content.read() == b"data: 2\n\n"
    api_port, pod_port = api.host_and_port[1], int(pod.url.rsplit(":", 1)[1])
    assert KEEPALIVE in {timer for local, _, timer in connections if local == api_port}
    assert KEEPALIVE in {timer for _, peer, timer in connections if peer == pod_port}


@pytest.mark.parametrize(("method", "media_type"), [("POST", "text/event-stream"), ("GET", "application/json")])
async def test_other_silent_answers_are_cut(serve: Serve, method: str, media_type: str) -> None:
    """The time between chunks limits answers to POST, and answers that are no event streams."""
    api = await serve(idle_timeout=SHORT)
    async with running_pod(events(asyncio.Event(), media_type)) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        async with api.session.request(method, f"{api.url}{RPC}") as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await asyncio.wait_for(answer.content.read(), 5)


def tcp_connections() -> list[tuple[int, int, str]]:
    """Local port, peer port and timer of this machine's established IPv4 connections (proc(5), /proc/net/tcp)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        (int(local[-4:], 16), int(peer[-4:], 16), timer[:2])
        for _, local, peer, state, _, timer, *_ in lines
        if state == ESTABLISHED
    ]
