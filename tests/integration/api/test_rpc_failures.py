"""Errors for callers when the agent cannot answer: which timeout, whether the call was sent, and no forged endings."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from services.connections import REST_SECONDS
from services.storage.database import Sessions
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Handler, Pod, raw_pod, refused_address, running_pod

SHORT = timedelta(milliseconds=300)
RPC = "/agents/name/bot/rpc"


async def test_agents_that_nothing_serves(api: Api, sessions: Sessions) -> None:
    """404, 503 with Retry-After, or 410, by id and by name, with the id of the call."""
    for unknown in (str(uuid4()), "no-uuid"):
        (await api.post(f"/agents/{unknown}/rpc", {"id": 1})).rpc_error(404, "agent-not-found")
    for name in ("nobody", "Bad_Name", "a%00b"):
        (await api.post(f"/agents/name/{name}/rpc", {"id": 1})).rpc_error(404, "agent-not-found")

    agent = (await api.post("/agents/register-build", {"name": "bot"})).json
    for path in (RPC, f"/agents/{agent['id']}/rpc"):
        answer = await api.post(path, {"id": "a"})
        assert answer.rpc_error(503, "nothing-serves")["id"] == "a"
        assert int(answer.headers["retry-after"]) > 0

    await api.register("bot", "v1")
    async with sessions.begin() as session:
        connection = await session.connection()
        await connection.exec_driver_sql("UPDATE deployments SET status = 'Failed', status_reason = 'no heartbeat'")
    failed = await api.post(RPC, {"id": 1})
    assert "no heartbeat" in failed.rpc_error(503, "deployment-unavailable")["error"]["message"]
    assert int(failed.headers["retry-after"]) > 0

    await api.delete(f"/agents/{agent['id']}")
    (await api.post(f"/agents/{agent['id']}/rpc", {"id": 1})).rpc_error(410, "agent-deleted")
    (await api.post(RPC, {"id": 1})).rpc_error(404, "agent-not-found")


async def test_methods_that_are_not_forwarded(api: Api, pod: Pod) -> None:
    """405 lists the methods that are."""
    await api.register("bot", "v1", acp_url=pod.url)
    for method in ("PUT", "PATCH", "PROPFIND"):
        answer = await api.call(method, RPC)
        answer.rpc_error(405, "method-not-allowed")
        assert {"GET", "POST", "DELETE"} <= set(answer.headers["allow"].split(", "))
    assert not pod.seen


@pytest.mark.parametrize(
    ("body", "call_id"),
    [
        (b'{"id": 1}', 1),
        (b'{"id": "1"}', "1"),
        (b'{"id": 123456789012345678901234567890}', 123456789012345678901234567890),
        (b'{"id": null}', None),
        (b'{"id": true}', None),
        (b'{"id": {"a": 1}}', None),
        (b'[{"id": 1}]', None),
        (b"{", None),
        (b"", None),
        (b"\xff\xfe", None),
        (b'{"id":' * 5000, None),
    ],
)
async def test_errors_carry_the_id_of_the_call(api: Api, body: bytes, call_id: object) -> None:
    """Unchanged, number or string; null if there is none."""
    answer = await api.call("POST", RPC, data=body)
    error = answer.rpc_error(404, "agent-not-found")
    assert error["id"] == call_id
    assert type(error["id"]) is type(call_id)


async def test_a_pod_that_refuses_connections(api: Api) -> None:
    """502: nothing was sent, so the caller may retry."""
    async with refused_address() as nowhere:
        await api.register("bot", "v1", acp_url=nowhere)
        (await api.post(RPC, {"id": 1})).rpc_error(502, "agent-unreachable")


async def test_a_pod_that_is_just_starting(api: Api) -> None:
    """A refused connection is retried for a moment, since nothing was sent."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    arrivals = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrivals
        arrivals += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()

    await api.register("bot", "v1", acp_url=f"http://127.0.0.1:{port}")
    call = asyncio.create_task(api.post(RPC, {}))
    await asyncio.sleep(0.05)  # the pod refuses connections during this time
    async with await asyncio.start_server(handle, sock=listening):
        assert (await call).body == b"ok"
    assert arrivals == 1


@pytest.mark.parametrize("url", ["http://no-such-host.invalid:80", "https://127.0.0.1:{port}"])
async def test_a_pod_that_is_not_there(api: Api, pod: Pod, url: str) -> None:
    """502 for a name without an address and for a failed TLS handshake; nothing was sent."""
    await api.register("bot", "v1", acp_url=url.format(port=pod.url.rsplit(":", 1)[1]))
    (await api.post(RPC, {"id": 1})).rpc_error(502, "agent-unreachable")


async def test_a_pod_that_does_not_accept(serve: Serve) -> None:
    """504 names the connect timeout; nothing was sent."""
    api = await serve(connect_timeout=SHORT)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:  # fills the accept queue
            each.settimeout(0)
            each.connect_ex(listening.getsockname())
        await api.register("bot", "v1", acp_url=f"http://127.0.0.1:{listening.getsockname()[1]}")
        async with asyncio.timeout(3):
            (await api.post(RPC, {"id": 1})).rpc_error(504, "connect-timeout")
        for each in waiting:
            each.close()


async def test_a_pod_that_does_not_answer(serve: Serve) -> None:
    """504 names the first-byte timeout; the call was sent, so a retry may repeat its effects."""
    api = await serve(first_byte_timeout=SHORT)
    async with raw_pod(None, close=False) as pod, asyncio.timeout(5):
        await api.register("bot", "v1", acp_url=pod.url)
        (await api.post(RPC, {"id": 1})).rpc_error(504, "first-byte-timeout", sent=True)
    assert len(pod.seen) == 1


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "agent-hung-up"),
        (b"HTTP/1.1 200 O", "agent-hung-up"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "agent-protocol-error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "agent-protocol-error"),
        (b"HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n", "agent-protocol-error"),
    ],
)
async def test_a_pod_whose_answer_is_not_http(api: Api, method: str, answer: bytes, reason: str) -> None:
    """502; the call is sent exactly once, whatever the method."""
    async with raw_pod(answer) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        (await api.call(method, RPC)).rpc_error(502, reason, sent=True)
    assert len(pod.seen) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_kept_connection_that_was_closed_meanwhile(api: Api, method: str) -> None:
    """The call may have arrived on it, so it is not sent again."""
    connections: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(connections)
        connections.append(0)
        await reader.readuntil(b"\r\n\r\n")
        connections[number] += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.readuntil(b"\r\n\r\n")  # the second call on the same connection
        connections[number] += 1
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        await api.register("bot", "v1", acp_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert (await api.call(method, RPC)).body == b"ok"
        await asyncio.sleep(5 * REST_SECONDS)
        (await api.call(method, RPC)).rpc_error(502, "agent-hung-up", sent=True)
    assert connections == [2]


async def read_raw(api: Api) -> bytes:
    """All raw bytes of the answer to one call, until the connection is closed."""
    host, port = api.host_and_port
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"POST {RPC} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode())
    async with asyncio.timeout(5):
        received = await reader.read()
    writer.close()
    await writer.wait_closed()
    return received


def breaking(*, length: bool, reset: bool) -> Handler:
    """A pod that closes the connection in the middle of its answer."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"} if length else {})
        await response.prepare(request)
        await response.write(b"half an answer")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        if reset:
            request.transport.abort()
        else:
            request.transport.close()
        return response

    return answer


@pytest.mark.parametrize("length", [True, False], ids=["known length", "chunked"])
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
async def test_a_broken_answer_is_forwarded_as_broken(api: Api, *, length: bool, reset: bool) -> None:
    """The caller sees that the end of the stream is missing."""
    async with running_pod(breaking(length=length, reset=reset)) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        received = await read_raw(api)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"half an answer" in received
    assert not received.endswith(b"0\r\n\r\n")
    assert b"content-length: 1000" in received if length else b"transfer-encoding: chunked" in received.lower()


async def test_an_answer_that_stops(serve: Serve) -> None:
    """After the idle timeout it ends in the same way."""
    api = await serve(idle_timeout=SHORT)

    async def stopping(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(3):  # each pause is shorter than the idle timeout, their sum is longer
            await response.write(b"a piece")
            await asyncio.sleep(0.15)
        await asyncio.sleep(60)
        return response

    async with running_pod(stopping) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        received = await read_raw(api)
    assert received.count(b"a piece") == 3
    assert not received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("pieces", [0, 1])
async def test_an_answer_that_stops_after_its_head(serve: Serve, pieces: int) -> None:
    """The idle timeout applies as soon as the head has arrived."""
    api = await serve(idle_timeout=SHORT, first_byte_timeout=timedelta(seconds=60))
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"a piece" * pieces
    async with raw_pod(answer, close=False) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        received = await read_raw(api)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"a piece") == pieces


async def test_a_slow_answer_may_take_longer_than_its_first_byte(serve: Serve) -> None:
    """Once it has started, only the time between two chunks is limited."""
    api = await serve(first_byte_timeout=SHORT, idle_timeout=timedelta(seconds=60))

    async def pausing(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(2 * SHORT.total_seconds())
        await response.write(b"at last")
        return response

    async with running_pod(pausing) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        answer = await api.post(RPC, {})
    assert (answer.status, answer.body) == (200, b"at last")


async def test_bodies_that_are_too_large(serve: Serve, pod: Pod) -> None:
    """413 without a call to the agent, with or without Content-Length, before the whole body is read."""
    api = await serve(rpc_max_bytes=1000)
    await api.register("bot", "v1", acp_url=pod.url)

    async def in_chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    bodies: list[Any] = [b"x" * 1001, in_chunks(), io.BytesIO(b"x" * 5 * 1024 * 1024)]
    for data in bodies:
        (await api.call("POST", RPC, data=data)).rpc_error(413, "message-too-large")
    assert not pod.seen
    assert (await api.call("POST", RPC, data=b"x" * 1000)).status == 200

    host, port = api.host_and_port
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"POST {RPC} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1001\r\n\r\n".encode())
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()
    await writer.wait_closed()


async def test_a_caller_that_disconnects_in_the_middle_of_its_body(api: Api, pod: Pod) -> None:
    """Nothing is sent to the agent; the next caller is served."""
    await api.register("bot", "v1", acp_url=pod.url)
    host, port = api.host_and_port
    _, writer = await asyncio.open_connection(host, port)
    writer.write(f"POST {RPC} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\nhalf".encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await api.call("POST", RPC, data=b"whole")).status == 200
    assert [seen.body for seen in pod.seen] == [b"whole"]


async def test_many_calls_to_a_silent_pod_do_not_hold_up_others(api: Api, pod: Pod) -> None:
    """Calls wait only for their own agent, and hold no database connection."""
    async with raw_pod(None, close=False) as silent, asyncio.timeout(20):
        await api.register("silent", "s1", acp_url=silent.url)
        await api.register("bot", "v1", acp_url=pod.url)
        stuck = [asyncio.create_task(api.post("/agents/name/silent/rpc", {})) for _ in range(50)]
        while len(silent.seen) < 50:
            await asyncio.sleep(0.01)
        assert (await api.post(RPC, {})).status == 200
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
