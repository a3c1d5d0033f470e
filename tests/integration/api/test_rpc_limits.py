"""Limits of what callers and agents may send."""

import io

import pytest

from tests.integration.api.client import Api
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


@pytest.mark.parametrize("header", [b"x-long: %b\r\n" % (b"v" * 100_000), b"x-many: v\r\n" * 10_000])
async def test_an_agent_s_headers_have_a_limit_too(api: Api, header: bytes) -> None:
    """502: the call was sent, and the answer is invalid."""
    async with raw_pod(b"HTTP/1.1 200 OK\r\n%bcontent-length: 0\r\n\r\n" % header) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        (await api.post(RPC, {"id": 1})).rpc_error(502, "agent-protocol-error", sent=True)
