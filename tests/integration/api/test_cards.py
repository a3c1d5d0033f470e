"""Agent cards beside the RPC routes: the deployment, the addresses in the card, and failures."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from api.gateway.agent_cards import CARD_MAX_BYTES
from services.storage.database import Sessions
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Handler, Pod, raw_pod, refused_address, running_pod
from tests.support.waiting import rows

CARD = "/.well-known/agent-card.json"
BOT = f"/agents/name/bot{CARD}"


def a_card(name: str = "v1", **more: object) -> dict[str, Any]:
    """An agent card with the agent's own address."""
    return {"name": name, "url": "http://internal.example/evil", "preferredTransport": "JSONRPC", **more}


def serving(card: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Handler:
    """A handler that serves this card at its path, and a plain answer at every other path."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != CARD:
            return web.json_response({"called": request.path})
        if isinstance(card, bytes):
            return web.Response(body=card, status=status, headers=headers)
        return web.json_response(card, status=status, headers=headers)

    return answer


async def status_line(api: Api, request: str) -> bytes:
    """The first line of the answer to a request that no client library would send."""
    reader, writer = await asyncio.open_connection(*api.host_and_port)
    writer.write(request.encode())
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line.strip()


async def test_the_card_names_the_route_beside_it(api: Api) -> None:
    """By id, by name and for a deployment: the address in the card is the RPC route of the same resource."""
    async with running_pod(serving(a_card("v1"))) as one, running_pod(serving(a_card("v2"))) as two:
        agent = await api.register("bot", "v1", acp_url=f"{one.url}/base", rpc_path="/a2a")
        await api.register("bot", "v2", acp_url=two.url)
        deployments = f"/agents/{agent['id']}/deployments"
        for beside, version in (
            ("/agents/name/bot", "v1"),
            (f"/agents/{agent['id']}", "v1"),
            (f"{deployments}/v1", "v1"),
            (f"{deployments}/v2", "v2"),
        ):
            answer = await api.get(f"{beside}{CARD}")
            assert answer.status == 200
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["cache-control"] == "no-cache"
            assert answer.headers["x-podium-deployment-id"] == version
            assert answer.headers["x-podium-generation"] == "1"
            assert answer.json == {"name": version, "url": f"{api.url}{beside}/rpc", "preferredTransport": "JSONRPC"}
        await api.promote(agent, "v2")
        assert (await api.get(BOT)).json["name"] == "v2"
        assert [seen.target for seen in one.seen] == [CARD] * 3
        # Calls go to the registered address, not to the address in the agent's card.
        assert (await api.post(f"{deployments}/v1/rpc", {})).json == {"called": "/base/a2a"}


async def test_the_card_of_a_legacy_agent(api: Api) -> None:
    """It is read from the legacy address, and the answer names no deployment."""
    async with running_pod(serving(a_card("old"))) as pod:
        await api.register("bot", acp_url=pod.url)
        answer = await api.get(BOT)
    assert (answer.json["name"], answer.json["url"]) == ("old", f"{api.url}/agents/name/bot/rpc")
    assert "x-podium-deployment-id" not in answer.headers


async def test_the_address_in_a_card(serve: Serve) -> None:
    """The configured URL; otherwise the Host header of the request, if it is valid."""
    key = {"x-api-key": "k"}
    async with running_pod(serving(a_card())) as pod:
        public = await serve(public_url="https://podium.example/base/")
        await public.register("bot", "v1", acp_url=pod.url)
        assert (await public.get(BOT)).json["url"] == "https://podium.example/base/agents/name/bot/rpc"

        api = await serve(api_key=SecretStr("k"))
        for host in ("podium.example", "podium.example:8080", "[::1]:8080", "localhost"):
            answer = await api.get(BOT, headers={**key, "Host": host, "X-Forwarded-Host": "evil.example"})
            assert answer.json["url"] == f"http://{host}/agents/name/bot/rpc"
        (await api.get(BOT, headers={**key, "Host": "me@a"})).problem(400, "invalid-request", field="Host")
        for host in ("podium.example:99999", "podium.example?x", "[::1"):
            assert (await api.get(BOT, headers={**key, "Host": host})).status == 400
        for hosts in ("", "Host: a\r\nHost: b\r\n"):
            line = await status_line(api, f"GET {BOT} HTTP/1.1\r\n{hosts}x-api-key: k\r\n\r\n")
            assert line == b"HTTP/1.1 400 Bad Request"


async def test_credentials_in_a_card(serve: Serve) -> None:
    """The gateway's key if it needs one, and nothing that the agent asks for."""
    claimed = a_card(securitySchemes={"own": {"type": "mutualTLS"}}, security=[{"own": []}])
    async with running_pod(serving(claimed)) as pod:
        api = await serve()
        await api.register("bot", "v1", acp_url=pod.url)
        card = (await api.get(BOT)).json
        assert {"securitySchemes", "security"}.isdisjoint(card)
        with_key = await serve(api_key=SecretStr("k"))
        card = (await with_key.get(BOT, headers={"x-api-key": "k"})).json
        assert card["securitySchemes"] == {"podium": {"type": "http", "scheme": "bearer"}}
        assert card["security"] == [{"podium": []}]


async def test_the_headers_of_a_card_request(api: Api) -> None:
    """The agent receives A2A and trace headers, and no headers that could change its card."""
    async with running_pod(serving(a_card())) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        passed = {"a2a-version": "0.3", "a2a-extensions": "x", "x-request-id": "me", "tracestate": "a=b"}
        stripped = {"authorization": "Bearer secret", "if-none-match": "*", "range": "bytes=0-1", "x-other": "1"}
        trace = "00-0af7651916cd43dd8448eb211c80319c-{}-01"
        given = {**passed, **stripped, "traceparent": trace.format("b7ad6b7169203331")}
        assert (await api.get(BOT, headers=given)).status == 200
    [seen] = pod.seen
    [parent] = seen.header("traceparent")
    assert parent.split("-")[1] == trace.split("-")[1]
    expected = {**passed, "traceparent": parent, "accept": "application/json", "host": pod.url.removeprefix("http://")}
    assert {name.lower(): value for name, value in seen.headers} == expected


async def test_cards_of_agents_that_cannot_be_called(api: Api, sessions: Sessions, pod: Pod) -> None:
    """404, 410 and 503 as for calls, without a request to the agent."""
    (await api.get(BOT)).problem(404, "agent-not-found")
    (await api.get(f"/agents/no-uuid{CARD}")).problem(404, "agent-not-found")
    agent = (await api.post("/agents/register-build", {"name": "bot"})).json
    nothing = await api.get(BOT)
    nothing.problem(503, "nothing-serves")
    assert int(nothing.headers["retry-after"]) > 0
    await api.register("bot", "v1", acp_url=pod.url)
    await api.register("bot", "v2", acp_url=pod.url)
    deployments = f"/agents/{agent['id']}/deployments"
    (await api.get(f"{deployments}/v3{CARD}")).problem(404, "deployment-not-found")
    await api.delete(f"{deployments}/v2")
    (await api.get(f"{deployments}/v2{CARD}")).problem(410, "deployment-deleted")
    async with sessions.begin() as session:
        await (await session.connection()).exec_driver_sql("UPDATE deployments SET status = 'Failed'")
    (await api.get(BOT)).problem(503, "deployment-unavailable")
    await api.delete(f"/agents/{agent['id']}")
    (await api.get(f"/agents/{agent['id']}{CARD}")).problem(410, "agent-deleted")
    assert not pod.seen
    assert await rows(sessions, "SELECT 1 FROM deployments WHERE is_production") == []


@pytest.mark.parametrize(
    ("handler", "status", "reason"),
    [
        (serving(a_card(), status=404), 404, "agent-card-missing"),
        (serving(a_card(), status=500), 502, "agent-card-invalid"),
        (serving(a_card(), status=302, headers={"Location": "http://127.0.0.1:1/"}), 502, "agent-card-invalid"),
        (serving({"name": "no interface"}), 502, "agent-card-invalid"),
        (serving(b"no JSON"), 502, "agent-card-invalid"),
        (serving(b'{"url": "http://a", "x": "%s"}' % (b"x" * CARD_MAX_BYTES)), 502, "agent-card-invalid"),
    ],
)
async def test_invalid_cards_are_refused(api: Api, handler: Handler, status: int, reason: str) -> None:
    """The error says why; an unchecked card never reaches the caller."""
    async with running_pod(handler) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        (await api.get(BOT)).problem(status, reason)
    assert len(pod.seen) == 1


async def test_agents_that_do_not_send_their_card(serve: Serve) -> None:
    """502 if the agent cannot be reached, 504 if it is too slow, before the first byte or between bytes."""
    api = await serve(card_timeout=timedelta(milliseconds=300))

    async def dripping(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    async with refused_address() as nowhere:
        await api.register("bot", "v1", acp_url=nowhere)
        (await api.get(BOT)).problem(502, "agent-unreachable")
    async with raw_pod(None, close=False) as silent:
        await api.register("bot", "v1", acp_url=silent.url)
        (await api.get(BOT)).problem(504, "agent-card-timeout")
    async with running_pod(dripping) as slow:
        await api.register("bot", "v1", acp_url=slow.url)
        (await api.get(BOT)).problem(504, "agent-card-timeout")
    async with raw_pod(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{") as broken:
        await api.register("bot", "v1", acp_url=broken.url)
        (await api.get(BOT)).problem(502, "agent-card-invalid")


async def test_cards_count_among_the_calls_of_an_agent(serve: Serve) -> None:
    """Failed card requests and failed calls share one circuit breaker."""
    api = await serve(breaker_failures=2)
    async with refused_address() as nowhere:
        await api.register("bot", "v1", acp_url=nowhere)
        for _ in range(2):
            (await api.get(BOT)).problem(502, "agent-unreachable")
        refused = await api.get(BOT)
        refused.problem(503, "breaker-open")
        assert int(refused.headers["retry-after"]) > 0
        (await api.post("/agents/name/bot/rpc", {})).rpc_error(503, "breaker-open")


async def test_cards_are_described(api: Api) -> None:
    """The OpenAPI document contains the three routes with their errors."""
    paths = (await api.get("/openapi.json")).json["paths"]
    cards = {path: operations["get"] for path, operations in paths.items() if path.endswith(CARD)}
    assert sorted(cards) == [
        f"/agents/name/{{name}}{CARD}",
        f"/agents/{{agent_id}}{CARD}",
        f"/agents/{{agent_id}}/deployments/{{deployment_id}}{CARD}",
    ]
    for operation in cards.values():
        assert {"200", "404", "410", "502", "503", "504"} <= set(operation["responses"])
        assert "application/json" in operation["responses"]["200"]["content"]
