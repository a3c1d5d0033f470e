"""Limits of what callers and agents may send."""

import asyncio
import io
from datetime import timedelta

import pytest

from api.http import limits as bounded_http
from api.http.request_body import HEADERS_MAX_BYTES
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, raw_pod

RPC = "/agents/name/bot/rpc"
MIB = 1024 * 1024


async def test_one_byte_more_than_four_mebibytes(api: Api, pod: Pod) -> None:
    """The default body limit is exact; a larger body is refused before the agent is dialled."""
    await api.register("bot", "v1", acp_url=pod.url)
    assert (await api.call("POST", RPC, data=io.BytesIO(b"x" * 4 * MIB))).status == 200
    assert len(pod.seen[0].body) == 4 * MIB
    refused = await api.call("POST", RPC, data=io.BytesIO(b"x" * (4 * MIB + 1)))
    refused.rpc_error(413, "message-too-large")
    assert refused.headers["x-request-id"]
    assert len(pod.seen) == 1


async def test_headers_that_are_too_large(api: Api, pod: Pod) -> None:
    """Headers, path and query count together; headers that agents' servers accept pass."""
    await api.register("bot", "v1", acp_url=pod.url)
    pieces = {f"x-{number}": "v" * 7000 for number in range(8)}
    assert (await api.post(RPC, {}, headers=pieces)).status == 200
    for path, headers in ((RPC, {**pieces, "x-8": "v" * 7000, "x-9": "v" * 7000}), (f"{RPC}?{'q' * 60_000}", pieces)):
        (await api.post(path, {}, headers=headers)).rpc_error(431, "headers-too-large")
    assert len(pod.seen) == 1


async def test_an_endless_header(api: Api) -> None:
    """The connection is closed when the head exceeds its limit."""
    reader, writer = await asyncio.open_connection(*api.host_and_port)
    writer.write(b"GET / HTTP/1.1\r\nx-endless: ")
    async with asyncio.timeout(20):
        for _ in range(HEADERS_MAX_BYTES // 1000 + 1):
            writer.write(b"v" * 1000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
    writer.close()


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nx-slow: "])
async def test_a_head_that_does_not_arrive(serve: Serve, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    """A connection is closed if no complete head arrives in time."""
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.3)
    api = await serve()
    reader, writer = await asyncio.open_connection(*api.host_and_port)
    writer.write(begun)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_a_slow_request_on_a_kept_connection(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit applies to each head, not to the connection."""
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.5)
    api = await serve()
    request = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    reader, writer = await asyncio.open_connection(*api.host_and_port)
    async with asyncio.timeout(10):
        for _ in range(4):
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(len(b'{"status":"live"}'))
            await asyncio.sleep(0.2)
        writer.write(request[:20])
        assert await reader.read() == b""
    writer.close()


async def test_a_body_that_does_not_arrive(serve: Serve, pod: Pod) -> None:
    """408 after the body timeout; the agent is not called."""
    api = await serve(body_timeout=timedelta(milliseconds=300))
    await api.register("bot", "v1", acp_url=pod.url)
    reader, writer = await asyncio.open_connection(*api.host_and_port)
    writer.write(f"POST {RPC} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\nhalf".encode())
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    assert not pod.seen


@pytest.mark.parametrize("header", [b"x-long: %b\r\n" % (b"v" * 100_000), b"x-many: v\r\n" * 10_000])
async def test_an_agent_s_headers_have_a_limit_too(api: Api, header: bytes) -> None:
    """502: the call was sent, and the answer is invalid."""
    async with raw_pod(b"HTTP/1.1 200 OK\r\n%bcontent-length: 0\r\n\r\n" % header) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        (await api.post(RPC, {"id": 1})).rpc_error(502, "agent-protocol-error", sent=True)
