"""MCP sessions through the gateway: on every process, across promotes, and without cost for other calls."""

import asyncio
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from aiohttp import web
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.routing.conversations import digest_of
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Handler, running_pod
from tests.support.waiting import rows

RPC = "/agents/name/bot/rpc"
KEPT = "SELECT deployment_id, key_sha256, last_seen_at, preview FROM conversations ORDER BY last_seen_at"


def speaking_mcp(version: str) -> Handler:
    """An MCP server that knows only its own sessions; like the SDK's it sends the session id in every answer."""
    numbers, known = count(1), set[str]()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        session = request.headers.get("mcp-session-id")
        if session is None:
            session = f"{version}!{next(numbers)}~/\\x7e"
            known.add(session)
        elif session not in known:
            return web.Response(status=404, text=version, headers={"mcp-session-id": session})
        elif request.method == "DELETE":
            known.remove(session)
        return web.Response(text=version, headers={"Mcp-Session-Id": session})

    return answer


def issuing(session: str, version: str) -> Handler:
    """A server that answers every call with this session id."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=version, headers={"Mcp-Session-Id": session})

    return answer


async def opened(api: Api, path: str = RPC) -> dict[str, str]:
    """Open a session; returns the client's headers for it."""
    answer = await api.post(path, {"id": 1, "method": "initialize"})
    assert answer.status == 200
    return {"mcp-session-id": answer.headers["mcp-session-id"]}


def said_by(answer: Answer, version: str, status: int = 200) -> None:
    """Assert that this version answered, by body and by header."""
    assert (answer.status, answer.body.decode()) == (status, version)
    assert answer.headers["x-podium-deployment-id"] == version


async def test_a_session_keeps_its_version_on_every_process(serve: Serve, sessions: Sessions) -> None:
    """After a promote, by id and by name, until it ends; new sessions start on the new version."""
    one, two = await serve(), await serve()
    async with running_pod(speaking_mcp("v1")) as old, running_pod(speaking_mcp("v2")) as new:
        agent = await one.register("bot", "v1", acp_url=old.url)
        await one.register("bot", "v2", acp_url=new.url)
        session = await opened(one)
        await one.promote(agent, "v2")
        for api in (two, one):
            for path in (RPC, f"/agents/{agent['id']}/rpc"):
                for method in ("POST", "GET"):
                    answer = await api.call(method, path, headers=session)
                    said_by(answer, "v1")
                    assert answer.headers["x-podium-generation"] == "2"
            said_by(await api.post(RPC, {}), "v2")
            said_by(await api.post(RPC, {}, headers={"mcp-session-id": "unknown"}), "v2", 404)
        fresh = await opened(two)
        said_by(await one.post(RPC, {}, headers=fresh), "v2")
        assert {seen.header("mcp-session-id")[0] for seen in old.seen[1:]} == {session["mcp-session-id"]}

        said_by(await two.delete(RPC, headers=session), "v1")
        said_by(await one.post(RPC, {}, headers=session), "v2", 404)
        kept = {bytes(row.key_sha256) for row in await rows(sessions, KEPT)}
        assert digest_of(session["mcp-session-id"].encode()) not in kept
        assert digest_of(fresh["mcp-session-id"].encode()) in kept


async def test_a_session_is_stored_before_its_client_receives_it(serve: Serve, sessions: Sessions) -> None:
    """It is committed when the head of the answer is sent, also for an endless stream."""
    one, two = await serve(), await serve()

    async def streaming(request: web.BaseRequest) -> web.StreamResponse:
        if "mcp-session-id" in request.headers:
            return web.Response(text="v1")
        response = web.StreamResponse(headers={"Mcp-Session-Id": "s", "Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(60)
        return response

    async with running_pod(streaming) as old, running_pod(speaking_mcp("v2")) as new, asyncio.timeout(20):
        agent = await one.register("bot", "v1", acp_url=old.url)
        await one.register("bot", "v2", acp_url=new.url)
        async with one.session.post(f"{one.url}{RPC}", json={}) as response:
            assert response.headers["mcp-session-id"] == "s"
            assert [row.deployment_id for row in await rows(sessions, KEPT)] == ["v1"]
            await one.promote(agent, "v2")
            said_by(await two.post(RPC, {}, headers={"mcp-session-id": "s"}), "v1")


async def test_a_session_belongs_to_the_route_that_issued_it(api: Api, sessions: Sessions) -> None:
    """A session that a deployment's own route issued is unknown on production's, whatever is promoted."""
    async with running_pod(speaking_mcp("v1")) as one, running_pod(speaking_mcp("v2")) as two:
        agent = await api.register("bot", "v1", acp_url=one.url)
        await api.register("bot", "v2", acp_url=two.url)
        preview = f"/agents/{agent['id']}/deployments/v2/rpc"
        session = await opened(api, preview)
        assert [(row.deployment_id, row.preview) for row in await rows(sessions, KEPT)] == [("v2", True)]
        said_by(await api.post(RPC, {}, headers=session), "v1", 404)
        for version in ("v2", "v1"):
            await api.promote(agent, version)
            said_by(await api.post(preview, {}, headers=session), "v2")
        said_by(await api.post(RPC, {}, headers=session), "v1", 404)
        said_by(await api.post(f"/agents/{agent['id']}/deployments/v1/rpc", {}, headers=session), "v1", 404)
        said_by(await api.delete(preview, headers=session), "v2")
        assert await rows(sessions, KEPT) == []


async def test_a_preview_cannot_take_a_session_of_production(api: Api) -> None:
    """By answering with the same session id, before production does and after it."""
    async with running_pod(issuing("s", "v1")) as one, running_pod(issuing("s", "v2")) as two:
        agent = await api.register("bot", "v1", acp_url=one.url)
        await api.register("bot", "v2", acp_url=two.url)
        preview = f"/agents/{agent['id']}/deployments/v2/rpc"
        session = await opened(api, preview)
        said_by(await api.post(RPC, {}, headers=session), "v1")
        said_by(await api.post(preview, {}, headers=session), "v2")
        said_by(await api.post(RPC, {}, headers=session), "v1")
        await api.register("bot", "v3", acp_url=two.url)
        await api.promote(agent, "v3")
        said_by(await api.post(RPC, {}, headers=session), "v1")


async def test_a_session_id_has_no_effect_on_other_agents(api: Api) -> None:
    """A call with it reaches the other agent's production, which does not know the session."""
    async with running_pod(speaking_mcp("v1")) as one, running_pod(speaking_mcp("o2")) as other:
        await api.register("bot", "v1", acp_url=one.url)
        agent = await api.register("other", "o1", acp_url=one.url)
        await api.register("other", "o2", acp_url=other.url)
        session = await opened(api)
        await api.promote(agent, "o2")
        said_by(await api.post("/agents/name/other/rpc", {}, headers=session), "o2", 404)
        said_by(await api.post(RPC, {}, headers=session), "v1")


async def test_a_session_of_a_deployment_that_is_gone(api: Api) -> None:
    """Production answers that the session is unknown, and the client opens another one."""
    async with running_pod(speaking_mcp("v1")) as old, running_pod(speaking_mcp("v2")) as new:
        agent = await api.register("bot", "v1", acp_url=old.url)
        await api.register("bot", "v2", acp_url=new.url)
        session = await opened(api)
        await api.promote(agent, "v2")
        await api.delete(f"/agents/{agent['id']}/deployments/v1?force=true")
        said_by(await api.post(RPC, {}, headers=session), "v2", 404)


async def test_what_a_session_costs(api: Api, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """One write at its start, one at its end, one per hour in between; calls without a session write nothing."""
    writes: list[str] = []

    async def counted(*given: Any) -> Any:
        writes.append(given[1].func.__name__)
        return await in_transaction(*given)

    async def plain(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="plain")

    monkeypatch.setattr("api.gateway.conversations.in_transaction", counted)
    async with running_pod(plain) as pod, running_pod(speaking_mcp("v1")) as speaking:
        await api.register("plain", "p1", acp_url=pod.url)
        await api.register("bot", "v1", acp_url=speaking.url)
        await api.post("/agents/name/plain/rpc", {})
        await api.delete("/agents/name/plain/rpc")
        assert writes == []
        session = await opened(api)
        for _ in range(3):
            await api.post(RPC, {}, headers=session)
        assert writes == ["keep_session"]
        async with sessions.begin() as database:
            await database.execute(text("UPDATE conversations SET last_seen_at = now() - interval '2 hours'"))
        for _ in range(3):
            await api.post(RPC, {}, headers=session)
        assert writes == ["keep_session", "session_seen"]
        [row] = await rows(sessions, "SELECT now() - last_seen_at AS age FROM conversations")
        assert row.age < timedelta(minutes=30)
        await api.delete(RPC, headers=session)
        await api.delete(RPC, headers=session)
        assert writes == ["keep_session", "session_seen", "end_session"]


async def test_what_opens_no_session(api: Api, sessions: Sessions) -> None:
    """Errors, answers with several ids, agents without deployments; a request with two ids belongs to neither."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(status=int(request.headers["x-status"]))
        for each in request.headers["x-issue"].split(","):
            response.headers.add("Mcp-Session-Id", each)
        return response

    async with running_pod(answer) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        await api.register("legacy", acp_url=pod.url)
        for path, status, issued in ((RPC, "400", "a"), (RPC, "200", "a,b"), ("/agents/name/legacy/rpc", "200", "a")):
            answered = await api.post(path, {}, headers={"x-status": status, "x-issue": issued})
            assert answered.headers.getall("mcp-session-id") == issued.split(",")
        assert await rows(sessions, KEPT) == []
        await api.post(RPC, {}, headers={"x-status": "200", "x-issue": "a"})
        assert [row.key_sha256 for row in await rows(sessions, KEPT)] == [digest_of(b"a")]
        two = [("x-status", "200"), ("x-issue", "c,d"), ("mcp-session-id", "a"), ("mcp-session-id", "b")]
        assert (await api.delete(RPC, headers=two)).status == 200
        assert pod.seen[-1].header("mcp-session-id") == ["a", "b"]
    assert [row.key_sha256 for row in await rows(sessions, KEPT)] == [digest_of(b"a")]


async def test_an_unknown_session_is_stored_with_its_next_answer(api: Api, sessions: Sessions) -> None:
    """As after a restored backup: the session belongs to the deployment that answers in it."""
    async with running_pod(speaking_mcp("v1")) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        session = await opened(api)
        async with sessions.begin() as database:
            await database.execute(text("DELETE FROM conversations"))
        said_by(await api.post(RPC, {}, headers=session), "v1")
    assert [row.deployment_id for row in await rows(sessions, KEPT)] == ["v1"]


async def test_a_session_that_cannot_be_stored_is_refused(serve: Serve, engine: AsyncEngine) -> None:
    """503 instead of a session id that other processes would not know; calls without a session work."""
    api = await serve(lock_timeout=timedelta(milliseconds=300))
    closed = asyncio.Event()

    async def opening(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Mcp-Session-Id": "s"} if request.method == "POST" else {})
        try:
            await response.prepare(request)
            if request.method == "POST":
                await asyncio.sleep(60)
        finally:
            closed.set()
        return response

    async with running_pod(opening) as pod, engine.connect() as locking, asyncio.timeout(20):
        await api.register("bot", "v1", acp_url=pod.url)
        await locking.execute(text("LOCK TABLE conversations IN EXCLUSIVE MODE"))
        (await api.post(RPC, {"id": 1})).rpc_error(503, "session-not-kept", sent=True)
        await closed.wait()
        assert (await api.get(RPC)).status == 200
        await locking.rollback()
