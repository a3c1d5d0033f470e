"""G68 to G70: calls that share a key stay with the version, or the instance, of the first one, on every process."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from sqlalchemy import text

from api.gateway import active_conversations
from services.routing.conversations import digest_of
from services.routing.draining import finish_draining
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Handler, Pod, running_pod
from tests.support.factories import a_body
from tests.support.waiting import eventually_rows, rows

RPC = "/agents/name/bot/rpc"
MOVED = "x-podium-session-moved"
A2A_CALL = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": {"parts": []}}}


def saying(name: str) -> Handler:
    """A pod that answers every call with its name."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=name)

    return answer


@pytest_asyncio.fixture
async def two_versions(api: Api) -> AsyncIterator[dict[str, Any]]:
    """An agent whose version v1 serves and whose preview v2 is Ready."""
    async with AsyncExitStack() as stack:
        for name in ("v1", "v2"):
            pod = await stack.enter_async_context(running_pod(saying(name)))
            agent = await api.register("bot", name, acp_url=pod.url)
        yield agent


async def said(api: Api, key: str | None = None, path: str = RPC, body: Any = None, **headers: str) -> str:
    """Which pod answers a call with this key."""
    sent = {**headers, **({} if key is None else {"x-podium-session": key})}
    answer = await api.post(path, body or {"id": 1}, headers=sent)
    assert answer.status == 200, answer.body
    return answer.body.decode()


async def policy(api: Api, agent: dict[str, Any], **change: Any) -> None:
    """Change the agent's policy."""
    answer = await api.call("PATCH", f"/agents/{agent['id']}", json=change)
    assert answer.status == 200, answer.body


async def test_a_key_of_the_caller(api: Api, serve: Serve, two_versions: dict[str, Any]) -> None:
    """The first call decides, also for another process; calls without the key, and with another one, go on."""
    other = await serve()
    assert await said(api, "first") == "v1"
    await api.promote(two_versions, "v2")
    for process in (api, other):
        assert await said(process, "first") == "v1"
        assert await said(process) == "v2"
        assert await said(process, "second") == "v2"
    await api.promote(two_versions, "v1")
    assert await said(other, "second") == "v2"
    assert await said(other, "first") == "v1"


async def test_agents_get_the_key(api: Api, pod: Pod) -> None:
    """Unchanged, as any other header."""
    await api.register("bot", "v1", acp_url=pod.url)
    await api.post(RPC, {"id": 1}, headers={"x-podium-session": "my key"})
    assert ("x-podium-session", "my key") in pod.seen[0].headers


@pytest.mark.parametrize("value", ["", "k" * 257])
async def test_keys_that_are_refused(api: Api, two_versions: dict[str, Any], value: str) -> None:
    """At most 256 bytes; nothing is sent."""
    answer = await api.post(f"/agents/{two_versions['id']}/rpc", {"id": 1}, headers={"x-podium-session": value})
    answer.rpc_error(400, "invalid-conversation-key")


async def test_without_affinity(api: Api, two_versions: dict[str, Any], sessions: Sessions) -> None:
    """No key is looked at, and none is stored."""
    await policy(api, two_versions, affinity="none")
    assert await said(api, "key") == "v1"
    await api.promote(two_versions, "v2")
    assert await said(api, "key") == "v2"
    assert await rows(sessions, "SELECT 1 FROM conversations") == []


async def test_kinds_of_keys_never_collide(api: Api, two_versions: dict[str, Any]) -> None:
    """The same text in another header, in a body, or on a preview's route is another conversation."""
    await policy(api, two_versions, conversation_keys="a2a")
    assert await said(api, "same") == "v1"
    await api.promote(two_versions, "v2")
    in_body = {**A2A_CALL, "params": {"message": {"contextId": "same"}}}
    assert await said(api, body=in_body) == "v2"
    assert await said(api, **{"mcp-session-id": "same"}) == "v2"
    assert await said(api, "same") == "v1"
    assert await said(api, "same", f"/agents/{two_versions['id']}/deployments/v2/rpc") == "v2"
    assert await said(api, "same") == "v1"


async def test_two_processes_and_one_new_key(api: Api, serve: Serve, two_versions: dict[str, Any]) -> None:
    """All calls with it reach one version, whatever is promoted meanwhile."""
    other = await serve()
    for turn in range(15):
        key = f"key-{turn}"
        answers = await asyncio.gather(
            *(said(process, key) for process in (api, other) for _ in range(4)),
            api.promote(two_versions, f"v{1 + turn % 2}"),
            *(said(process, key) for process in (api, other) for _ in range(4)),
        )
        assert len({each for each in answers if each is not None}) == 1, answers


async def test_a_version_that_is_gone(api: Api, two_versions: dict[str, Any]) -> None:
    """What serves takes over, and the answer says so once; the conversation then stays there."""
    assert await said(api, "key") == "v1"
    await api.promote(two_versions, "v2")
    answer = await api.delete(f"/agents/{two_versions['id']}/deployments/v1")
    problem = answer.problem(409, "conversations-open")
    assert "1 conversations are open" in problem["detail"]
    assert (await api.delete(f"/agents/{two_versions['id']}/deployments/v1?force=true")).status == 200
    first, second = [await api.post(RPC, {"id": 1}, headers={"x-podium-session": "key"}) for _ in range(2)]
    assert (first.body, first.headers[MOVED]) == (b"v2", "v1")
    assert second.body == b"v2"
    assert MOVED not in second.headers


async def test_a_drained_version_gets_no_more_calls(api: Api, two_versions: dict[str, Any], sessions: Sessions) -> None:
    """At the deadline, its conversations move to what serves."""
    assert await said(api, "key") == "v1"
    await api.promote(two_versions, "v2")
    shown = await api.get(f"/agents/{two_versions['id']}/deployments/v1")
    assert shown.json["draining"]["open_conversations"] == 1
    await policy(api, two_versions, drain_deadline_seconds=1)
    await asyncio.sleep(1.1)
    await in_transaction(sessions, finish_draining)
    answer = await api.post(RPC, {"id": 1}, headers={"x-podium-session": "key"})
    assert (answer.body, answer.headers[MOVED]) == (b"v2", "v1")
    shown = await api.get(f"/agents/{two_versions['id']}/deployments/v1")
    assert shown.json["draining"] is None
    assert shown.json["drained_at"] is not None


async def test_idle_conversations_end(api: Api, two_versions: dict[str, Any]) -> None:
    """After the agent's own time, the key is as new."""
    await policy(api, two_versions, conversation_idle_seconds=1)
    assert await said(api, "key") == "v1"
    await api.promote(two_versions, "v2")
    for _ in range(4):
        await asyncio.sleep(0.4)
        assert await said(api, "key") == "v1"
    await asyncio.sleep(1.2)
    assert await said(api, "key") == "v2"


async def test_long_calls_keep_a_conversation_open(
    api: Api, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short its idle time is."""
    monkeypatch.setattr(active_conversations, "REFRESH_SECONDS", 0.05)
    ended = asyncio.Event()

    async def stream(_: web.BaseRequest) -> web.StreamResponse:
        await ended.wait()
        return web.Response(text="at last")

    async with running_pod(stream) as pod:
        agent = await api.register("bot", "v1", acp_url=pod.url)
        await policy(api, agent, conversation_idle_seconds=1)
        calling = asyncio.create_task(said(api, "key"))
        await asyncio.sleep(2)
        [row] = await rows(sessions, "SELECT clock_timestamp() - last_seen_at AS age FROM conversations")
        assert row.age < timedelta(seconds=0.8)
        ended.set()
        assert await calling == "at last"


async def test_the_database_is_away_for_the_first_call(api: Api, pod: Pod, sessions: Sessions) -> None:
    """Refused with a reason of its own, and nothing is sent."""
    await api.register("bot", "v1", acp_url=pod.url)
    async with sessions() as session, session.begin():
        await session.execute(text("LOCK TABLE conversations IN EXCLUSIVE MODE"))
        answer = await api.post(RPC, {"id": 1}, headers={"x-podium-session": "key"})
    answer.rpc_error(503, "conversation-not-pinned")
    assert pod.seen == []


def answering(name: str, **result: Any) -> Handler:
    """A pod whose answer has this result."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": {**result, "by": name}})

    return answer


@pytest.mark.parametrize(
    ("keys", "issued", "followup"),
    [
        ("a2a", {"contextId": "c1", "id": "t1", "status": {}}, {"message": {"contextId": "c1"}}),
        ("a2a", {"contextId": "c1", "id": "t1", "status": {}}, {"id": "t1"}),
        ("a2a", {"task": {"contextId": "c1", "id": "t1", "status": {}}}, {"message": {"taskId": "t1"}}),
        ("a2a", {"message": {"contextId": "c1"}}, {"message": {"contextId": "c1"}}),
        ("acp", {"task_id": "t1"}, {"task_id": "t1"}),
        ("acp", {"id": "t1", "status": "RUNNING"}, {"task": {"id": "t1"}}),
    ],
)
async def test_ids_that_the_agent_issues(
    api: Api, serve: Serve, keys: str, issued: dict[str, Any], followup: dict[str, Any]
) -> None:
    """The call that names such an id goes to the version that issued it, on every process, across a promote."""
    other = await serve()
    async with running_pod(answering("v1", **issued)) as one, running_pod(answering("v2")) as two:
        agent = await api.register("bot", "v1", acp_url=one.url)
        await api.register("bot", "v2", acp_url=two.url)
        await policy(api, agent, conversation_keys=keys)
        method = "tasks/get" if "id" in followup else "message/send"
        first = await api.post(RPC, A2A_CALL)
        assert first.json["result"]["by"] == "v1"
        await api.promote(agent, "v2")
        for process in (api, other):
            for _ in range(2):
                answer = await process.post(RPC, {"jsonrpc": "2.0", "id": 2, "method": method, "params": followup})
                assert answer.json["result"]["by"] == "v1"
            assert (await process.post(RPC, A2A_CALL)).json["result"]["by"] == "v2"


async def test_ids_in_a_stream(api: Api) -> None:
    """The first event is held back until its id is pinned; every byte of the stream arrives."""
    rest = asyncio.Event()
    event = b'data: {"result": {"statusUpdate": {"contextId": "c1", "taskId": "t1"}}}\r\n\r\n'

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": hello\n")
        await response.write(event)
        await rest.wait()
        await response.write(b"data: the rest\n\n")
        return response

    async with running_pod(stream) as pod, running_pod(saying("v2")) as two:
        agent = await api.register("bot", "v1", acp_url=pod.url)
        await api.register("bot", "v2", acp_url=two.url)
        await policy(api, agent, conversation_keys="a2a")
        async with api.session.post(f"{api.url}{RPC}", json=A2A_CALL) as response:
            began = await response.content.readexactly(len(b": hello\n" + event))
            await api.promote(agent, "v2")
            followup = {**A2A_CALL, "params": {"message": {"contextId": "c1"}}}
            rest.set()
            async with api.session.post(f"{api.url}{RPC}", json=followup) as again:
                assert (await again.content.readany()).startswith(b": hello")
            assert began == b": hello\n" + event
            assert await response.content.read() == b"data: the rest\n\n"


async def test_bodies_of_agents_that_did_not_opt_in(api: Api, two_versions: dict[str, Any]) -> None:
    """Are not looked at."""
    body = {**A2A_CALL, "params": {"message": {"contextId": "c1"}}}
    assert await said(api, body=body) == "v1"
    await api.promote(two_versions, "v2")
    assert await said(api, body=body) == "v2"
    await policy(api, two_versions, conversation_keys="a2a")
    assert await said(api, body=body) == "v2"
    await api.promote(two_versions, "v1")
    assert await said(api, body=body) == "v2"
    await policy(api, two_versions, conversation_keys="none")
    assert await said(api, body=body) == "v1"


async def three_instances(api: Api, stack: AsyncExitStack, version: str = "v1") -> dict[str, Pod]:
    """Three instances of a version; each answers with its name."""
    pods = {}
    for name in ("a", "b", "c"):
        pods[name] = await stack.enter_async_context(running_pod(saying(f"{version}{name}")))
        body = a_body("bot", deployment_id=version, instance_id=name, acp_url=pods[name].url)
        assert (await api.post("/agents/register", body)).status == 200
    return pods


async def test_affinity_to_an_instance(api: Api, serve: Serve) -> None:
    """All calls of a conversation reach one instance; if it says goodbye, another one of the same version."""
    other = await serve()
    async with AsyncExitStack() as stack:
        await three_instances(api, stack)
        await three_instances(api, stack, "v2")
        agent = (await api.get("/agents/name/bot")).json
        spread = {await said(api, f"key-{number}") for number in range(20)}
        assert len(spread) > 1
        await policy(api, agent, affinity="instance")
        first = {f"k{number}": await said(api, f"k{number}") for number in range(8)}
        await api.promote(agent, "v2")
        for process in (api, other):
            for key, instance in first.items():
                assert {await said(process, key) for _ in range(4)} == {instance}
        gone = first["k0"]
        goodbye = {"name": "bot", "deployment_id": "v1", "instance_id": gone[-1]}
        assert (await api.post("/agents/deregister", goodbye)).status == 200
        moved = await said(api, "k0")
        assert moved.startswith("v1")
        assert moved != gone
        assert {await said(other, "k0") for _ in range(5)} == {moved}


def speaking_mcp(name: str, known: set[str]) -> Handler:
    """An MCP server that knows only its own sessions."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        session = request.headers.get("mcp-session-id")
        if session is None:
            session = f"{name}-{len(known)}"
            known.add(session)
        elif session not in known:
            return web.Response(status=404, text=name)
        return web.Response(text=name, headers={"mcp-session-id": session})

    return answer


@pytest.mark.parametrize("affinity", ["deployment", "instance"])
async def test_mcp_sessions_stay_with_their_instance(api: Api, affinity: str) -> None:
    """A server keeps them in memory. If its instance is gone, the client gets 404 and starts a new session."""
    async with AsyncExitStack() as stack:
        for name in ("a", "b", "c"):
            pod = await stack.enter_async_context(running_pod(speaking_mcp(name, set())))
            body = a_body("bot", deployment_id="v1", instance_id=name, acp_url=pod.url)
            answer = await api.post("/agents/register", body)
        await policy(api, answer.json, affinity=affinity)
        opened: list[Answer] = [await api.post(RPC, {"method": "initialize"}) for _ in range(9)]
        for each in opened:
            session = {"mcp-session-id": each.headers["mcp-session-id"]}
            assert {(await api.post(RPC, {}, headers=session)).body for _ in range(4)} == {each.body}
        gone = opened[0]
        goodbye = {"name": "bot", "deployment_id": "v1", "instance_id": gone.body.decode()}
        assert (await api.post("/agents/deregister", goodbye)).status == 200
        session = {"mcp-session-id": gone.headers["mcp-session-id"]}
        answer = await api.post(RPC, {}, headers=session)
        assert answer.status == 404
        if affinity == "instance":
            answer.rpc_error(404, "session-instance-gone")


async def test_bytes_of_bodies_are_not_changed(api: Api, pod: Pod) -> None:
    """Neither of odd JSON, nor of what is no JSON, nor of bodies far longer than what is looked at."""
    agent = await api.register("bot", "v1", acp_url=pod.url)
    await policy(api, agent, conversation_keys="a2a")
    for body in (
        b'{"params": {"message": {"contextId": "c1", "contextId": "c2", "n": 12345678901234567890.10}}}  ',
        b"[1, 2, 3]",
        b"\xff\xfe no JSON",
        b'{"params": {"message": {"contextId": "c1", "text": "' + b"x" * 200_000 + b'"}}}',
        b"[" * 100_000,
        json.dumps({"params": {"message": {"contextId": 7}}}).encode(),
    ):
        answer = await api.call("POST", RPC, data=body, headers={"content-type": "application/json"})
        assert answer.status == 200
        assert pod.seen[-1].body == body


@pytest.mark.usefixtures("two_versions")
async def test_digests_do_not_reveal_keys(api: Api, sessions: Sessions) -> None:
    """Only a digest is stored."""
    await said(api, "my secret key")
    [row] = await rows(sessions, "SELECT key_sha256, conversations::text AS whole FROM conversations")
    assert "secret" not in row.whole
    assert bytes(row.key_sha256) == digest_of(b"my secret key", None, "explicit")


@pytest.mark.usefixtures("two_versions")
async def test_one_write_for_a_conversation(api: Api, sessions: Sessions) -> None:
    """Further calls write nothing for an hour."""
    # The transaction that wrote each row.
    written = "SELECT xmin::text FROM conversations ORDER BY xmin::text::bigint"
    await said(api, "key")
    first = await eventually_rows(sessions, written)
    for _ in range(30):
        await said(api, "key")
    await said(api, "later")
    assert (await eventually_rows(sessions, written, 2))[0] == first[0]
