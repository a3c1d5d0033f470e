"""Telemetry of each call: one log line, metrics without callers' words, and the gateway's span of the trace."""

import asyncio
import re
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, raw_pod, refused_address, running_pod
from tests.support.waiting import eventually

RPC = "/agents/name/bot/rpc"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def lines(logged: list[Any], count: int = 1) -> list[Any]:
    """Wait for that many log lines of calls; returns them."""

    def found() -> list[Any]:
        return [line for line in logged if line["action"].startswith("rpc.")]

    async def enough() -> bool:
        return len(found()) >= count

    await eventually(enough, f"{count} calls are over")
    assert len(found()) == count, "one line for each call"
    return found()


async def test_a_call_has_one_log_line(api: Api, pod: Pod) -> None:
    """It is written at the end of the call, with the ids that find the call in other logs."""
    agent = await api.register("bot", "v1", acp_url=pod.url)
    headers = {"x-request-id": "me-1", "traceparent": f"00-{TRACE}-{PARENT}-01", "authorization": "Bearer secret"}
    with capture_logs() as logged:
        answer = await api.call("POST", RPC, data=b'{"id": 1}', headers=headers)
        [line] = await lines(logged)
    [seen] = pod.seen
    assert seen.header("traceparent") == [f"00-{TRACE}-{line['span_id']}-01"]
    times = {name: line.pop(name) for name in ("ms", "first_byte_ms")}
    assert 0 < times["first_byte_ms"] <= times["ms"]
    assert re.fullmatch("[0-9a-f]{16}", line.pop("span_id"))
    assert line == {
        "event": "A call was forwarded.",
        "action": "rpc.forwarded",
        "log_level": "info",
        "agent_id": agent["id"],
        "deployment_id": "v1",
        "generation": 1,
        "method": "POST",
        "actor": "local",
        "status": 200,
        "outcome": "answered",
        "request_bytes": 9,
        "response_bytes": len(answer.body),
        "request_id": "me-1",
        "trace_id": TRACE,
    }


async def test_the_log_line_of_a_refused_call_has_its_reason(api: Api) -> None:
    """The answer contains the request id, which finds the line in the log."""
    async with refused_address() as nowhere:
        await api.register("bot", "v1", acp_url=nowhere)
        with capture_logs() as logged:
            answer = await api.post(RPC, {"id": 1})
            await api.post("/agents/name/nobody/rpc", {"id": 1})
            away, unknown = await lines(logged, 2)
    answer.rpc_error(502, "agent-unreachable")
    assert (away["action"], away["outcome"], away["status"]) == ("rpc.refused", "agent-unreachable", 502)
    assert away["request_id"] == answer.headers["x-request-id"]
    assert away["deployment_id"] == "v1"
    assert (unknown["outcome"], unknown["status"]) == ("agent-not-found", 404)
    assert "agent_id" not in unknown


@pytest.mark.parametrize("given", ["日本", "grüße", "x" * 5000])
async def test_a_request_id_of_any_kind(api: Api, given: str) -> None:
    """An id that is not ASCII is not echoed, and a long one is truncated in the log."""
    with capture_logs() as logged:
        answer = await api.post("/agents/name/nobody/rpc", {"id": 1}, headers={"x-request-id": given})
        [line] = await lines(logged)
    answer.rpc_error(404, "agent-not-found")
    assert answer.headers.get("x-request-id") == (given if given.isascii() else None)
    assert line["request_id"] == given[:200]


async def test_calls_are_counted_by_outcome(api: Api, pod: Pod) -> None:
    """By route and outcome, with bytes in both directions and time to first byte, and without labels from callers."""

    async def stuck(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"piece")
        await asyncio.sleep(60)
        return response

    agent = await api.register("some-bot", "v1", acp_url=pod.url)
    path = "/agents/name/some-bot/rpc"
    for route in (path, path, f"/agents/{agent['id']}/rpc", f"/agents/{agent['id']}/deployments/v1/rpc"):
        await api.call("POST", route, data=b"12345")
    await api.post("/agents/name/nobody/rpc", {})
    async with running_pod(stuck) as stuck_pod, raw_pod(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf") as broken:
        await api.register("stuck", "s1", acp_url=stuck_pod.url)
        await api.register("broken", "b1", acp_url=broken.url)
        with capture_logs() as logged:
            with pytest.raises(aiohttp.ClientPayloadError):
                await api.post("/agents/name/broken/rpc", {})
            async with api.session.post(f"{api.url}/agents/name/stuck/rpc", json={}) as response:
                assert await response.content.readany() == b"piece"
                text = (await api.get("/metrics")).body.decode()
                assert "podium_rpc_under_way 1.0" in text
                response.close()
            broke, left = await lines(logged, 2)
    assert (broke["action"], broke["log_level"], broke["detail"]) == ("rpc.broken", "warning", "agent-hung-up")
    assert (left["action"], left["outcome"], left["response_bytes"]) == ("rpc.left", "caller-left", 5)
    text = (await api.get("/metrics")).body.decode()
    for line in (
        'podium_rpc_calls_total{outcome="answered",route="name"} 2.0',
        'podium_rpc_calls_total{outcome="answered",route="agent"} 1.0',
        'podium_rpc_calls_total{outcome="answered",route="deployment"} 1.0',
        'podium_rpc_calls_total{outcome="agent-not-found",route="name"} 1.0',
        'podium_rpc_calls_total{outcome="broken",route="name"} 1.0',
        'podium_rpc_calls_total{outcome="caller-left",route="name"} 1.0',
        'podium_rpc_first_byte_seconds_count{route="name"} 4.0',
        'podium_rpc_bytes_total{direction="request"} 24.0',
        "podium_rpc_under_way 0.0",
        "podium_rpc_breakers_open 0.0",
    ):
        assert line in text, line
    for stranger in ("nobody", agent["id"], "v1"):
        assert stranger not in text
    assert {line.split("{")[0][:13] for line in text.splitlines() if "some-bot" in line} == {"podium_agent_"}


async def test_a_call_without_a_valid_trace_starts_one(serve: Serve, pod: Pod) -> None:
    """An invalid traceparent is not forwarded."""
    api = await serve()
    await api.register("bot", "v1", acp_url=pod.url)
    await api.call("POST", RPC, data=b"{}", headers={"traceparent": "nonsense", "tracestate": "a=b"})
    [seen] = pod.seen
    [given] = seen.header("traceparent")
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", given)
    assert seen.header("tracestate") == []
