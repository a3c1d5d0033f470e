"""Calls of the last hour, as the gateway counts them and the API and the console show them."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from api.console import call_watch
from services.calls import counts
from services.cancellation import background_task
from services.storage.database import Sessions
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import refused_address, running_pod
from tests.support.factories import a_body
from tests.support.waiting import eventually

RPC = "/agents/name/bot/rpc"
CALL = {"jsonrpc": "2.0", "id": 1, "method": "m"}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are stored after moments."""
    monkeypatch.setattr(counts, "STORE_EVERY", counts.STORE_EVERY / 500)


async def counted(api: Api, agent: dict[str, Any], calls: int, **options: Any) -> dict[str, Any]:
    """The answer once it has this many calls."""
    found: dict[str, Any] = {}

    async def are_stored() -> bool:
        nonlocal found
        found = (await api.get(f"/agents/{agent['id']}/calls", **options)).json
        return bool(found["total"]["calls"] == calls)

    await eventually(are_stored, f"{calls} calls are stored")
    return found


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    """What the query says: a status, or an answer that breaks off."""
    if request.query_string == "break":
        response = web.StreamResponse(headers={"content-length": "100"})
        await response.prepare(request)
        await response.write(b"begin")
        assert request.transport is not None
        request.transport.close()
        return response
    return web.json_response({}, status=int(request.query_string or 200))


async def test_what_counts_as_a_failure(serve: Serve, sessions: Sessions) -> None:
    """G104: the agent's server errors and broken answers, and calls that the gateway could not have answered."""
    assert sessions
    api = await serve()
    async with running_pod(answer) as pod, refused_address() as refused:
        agent = await api.register("bot", "v1", acp_url=pod.url)
        await api.register("bot", "v2", acp_url=refused)
        for query in ("", "?200", "?404", "?500", "?503"):
            await api.post(f"{RPC}{query}", CALL)
        with pytest.raises(aiohttp.ClientError):
            await api.post(f"{RPC}?break", CALL)
        assert (await api.post(f"/agents/{agent['id']}/deployments/v2/rpc", CALL)).status == 502
        assert (await api.post("/agents/name/nobody/rpc", CALL)).status == 404
    found = await counted(api, agent, 7)
    versions = {each["deployment_id"]: each for each in found["deployments"]}
    names = ("calls", "agent_failures", "gateway_failures")
    assert {version: tuple(each[name] for name in names) for version, each in versions.items()} == {
        "v1": (6, 3, 0),
        "v2": (1, 0, 1),
    }  # fmt: skip
    assert 0 < versions["v1"]["mean_seconds"] <= versions["v1"]["longest_seconds"] < 5
    assert versions["v2"]["mean_seconds"] is None
    assert len(found["minutes"]) == 60
    assert sum(minute["calls"] for minute in found["minutes"]) == 7
    assert found["is_complete"]
    page = (await api.get(f"/console/agents/{agent['id']}")).body.decode()
    assert "Calls in the last hour" in page
    assert "3 by the agent, 1 without an answer" in page
    assert "4 failed" in (await api.get("/console/agents")).body.decode()
    assert "1 failed" in (await api.get(f"/console/agents/{agent['id']}/versions/v2")).body.decode()


async def test_calls_that_nothing_serves_are_failures_of_the_agent_s_hour(serve: Serve, sessions: Sessions) -> None:
    """G104: a Failed production and an agent without one, also in the error style `jsonrpc`, whose status is 200."""
    api = await serve()
    idle = (await api.post("/agents/register-build", {"name": "idle"})).json
    for style in ("http", "jsonrpc"):
        agent = await api.register("bot", f"v-{style}", acp_url="http://10.0.0.1:1", error_style=style)
        await api.promote(agent, f"v-{style}")
        async with sessions() as session, session.begin():
            connection = await session.connection()
            await connection.exec_driver_sql(f"UPDATE deployments SET status = 'Failed' WHERE id = 'v-{style}'")
        await api.post(RPC, CALL)
    await api.post("/agents/name/idle/rpc", CALL)
    found = await counted(api, agent, 2)
    assert {each["deployment_id"]: each["gateway_failures"] for each in found["deployments"]} == {
        "v-http": 1,
        "v-jsonrpc": 1,
    }
    [of_idle] = (await counted(api, idle, 1))["deployments"]
    assert (of_idle["deployment_id"], of_idle["gateway_failures"]) == (None, 1)


async def test_all_processes_count_and_only_the_agent_s_readers_see(serve: Serve, sessions: Sessions) -> None:
    """G104: calls through two processes are in one answer of either; the counts of others do not exist."""
    assert sessions
    key = {"x-api-key": "the-key"}
    one, two = await serve(api_key=SecretStr("the-key")), await serve(api_key=SecretStr("the-key"))
    async with running_pod() as pod:
        body = a_body("bot", deployment_id="v1", acp_url=pod.url)
        agent = (await one.post("/agents/register", body, headers=key)).json
        for api in (one, two, two):
            assert (await api.post(RPC, CALL, headers=key)).status == 200
    assert (await counted(one, agent, 3, headers=key))["total"] == (await counted(two, agent, 3, headers=key))["total"]
    new = {"name": "other", "scopes": ["read"], "agents": ["other-*"]}
    other = {"x-api-key": (await one.post("/keys", new, headers=key)).json["secret"]}
    (await one.get(f"/agents/{agent['id']}/calls", headers=other)).problem(404, "agent-not-found")
    (await one.get(f"/agents/{uuid4()}/calls", headers=key)).problem(404, "agent-not-found")


async def test_a_call_without_the_key_counts_for_nobody(serve: Serve, sessions: Sessions) -> None:
    """G104: strangers cannot make an agent look busy or broken."""
    assert sessions
    key = {"x-api-key": "the-key"}
    api = await serve(api_key=SecretStr("the-key"))
    async with running_pod() as pod:
        agent = (await api.post("/agents/register", a_body("bot", acp_url=pod.url), headers=key)).json
        new = {"name": "other", "scopes": ["invoke"], "agents": ["other-*"]}
        other = {"x-api-key": (await api.post("/keys", new, headers=key)).json["secret"]}
        assert (await api.post(RPC, CALL)).status == 401
        assert (await api.post(RPC, CALL, headers=other)).status == 404
        assert (await api.post(RPC, CALL, headers=key)).status == 200
    await counted(api, agent, 1, headers=key)


async def test_an_open_page_hears_of_calls(serve: Serve, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """G104: a page of the agent is told to read its counts again after a call, and nothing before."""
    assert sessions
    monkeypatch.setattr(call_watch, "EVERY", timedelta(milliseconds=50))
    api = await serve(sse_heartbeat=timedelta(milliseconds=100))
    async with running_pod() as pod:
        agent = await api.register("bot", "v1", acp_url=pod.url)
        since = (await api.get(f"/agents/{agent['id']}")).json["sequence"]
        heard = bytearray()
        async with api.session.get(f"{api.url}/console/live?agent={agent['id']}&since={since}") as stream:

            async def listen() -> None:
                async for part in stream.content.iter_any():
                    heard.extend(part)

            async def hears(wanted: bytes, times: int = 1) -> None:
                async def has_heard() -> bool:
                    return heard.count(wanted) >= times

                await eventually(has_heard, f"{wanted!r}")

            async with background_task(listen(), name="page"):
                await hears(b"heartbeat", 5)
                assert b"event: change" not in heard
                assert (await api.post(RPC, CALL)).status == 200
                await hears(b"event: change")
