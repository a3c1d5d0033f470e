"""API keys: their whole life over HTTP, on several processes, and what the ledger and the audit log say of them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import SecretStr

from services.identities.keys import digest_of
from services.identities.last_used import LastUsed, store_used
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, pausing, running_pod
from tests.support.factories import a_body
from tests.support.waiting import rows

ADMIN = {"x-api-key": "the-api-key"}
CALL = {"jsonrpc": "2.0", "id": 1, "method": "m"}


async def keyed(serve: Serve, **changes: Any) -> Api:
    """An API with a key, which every request must send."""
    return await serve(api_key=SecretStr(ADMIN["x-api-key"]), **changes)


async def created(api: Api, *scopes: str, name: str = "ci", **more: Any) -> tuple[dict[str, str], str]:
    """The header with the secret of a new key, and the path of the key."""
    answer = await api.post("/keys", {"name": name, "scopes": list(scopes), **more}, headers=ADMIN)
    assert answer.status == 200, answer.body
    return {"authorization": f"Bearer {answer.json['secret']}"}, f"/keys/{answer.json['id']}"


async def call(api: Api, headers: dict[str, str]) -> Answer:
    """An RPC to the agent `bot`."""
    return await api.post("/agents/name/bot/rpc", CALL, headers=headers)


async def test_a_revoked_key_is_refused_at_once_by_every_process(serve: Serve, pod: Pod) -> None:
    """G73: the next read and the next call get 401 on each process, also on those that have served the key before."""
    processes = [await keyed(serve) for _ in range(3)]
    first = processes[0]
    await first.post("/agents/register", a_body("bot", acp_url=pod.url), headers=ADMIN)
    for _ in range(3):
        headers, path = await created(first, "read", "invoke")
        for api in processes:
            assert (await call(api, headers)).status == 200
            assert (await api.get("/agents", headers=headers)).status == 200
        assert (await first.delete(path, headers=ADMIN)).status == 200
        seen = len(pod.seen)
        for api in processes[::-1]:
            (await call(api, headers)).rpc_error(401, "unauthorized")
            (await api.post("/agents/name/nobody/rpc", CALL, headers=headers)).rpc_error(401, "unauthorized")
            (await api.get("/agents", headers=headers)).problem(401, "unauthorized")
        assert len(pod.seen) == seen
        assert (await first.delete(path, headers=ADMIN)).status == 200


async def test_calls_under_way_while_a_key_is_revoked(serve: Serve, pod: Pod) -> None:
    """G73: of many callers at once, none succeeds that began after the answer of the revocation."""
    api, other = await keyed(serve), await keyed(serve)
    await api.post("/agents/register", a_body("bot", acp_url=pod.url), headers=ADMIN)
    headers, path = await created(api, "invoke")
    revoked = asyncio.Event()
    late: list[int] = []

    async def keep_calling() -> None:
        for _ in range(200):
            began_after = revoked.is_set()
            status = (await call(other, headers)).status
            if began_after:
                late.append(status)
                return
            assert status in {200, 401}

    callers = [asyncio.create_task(keep_calling()) for _ in range(8)]
    await asyncio.sleep(0.1)
    assert (await api.delete(path, headers=ADMIN)).status == 200
    revoked.set()
    await asyncio.gather(*callers)
    assert late == [401] * 8


async def test_a_rotated_key_and_its_overlap(serve: Serve) -> None:
    """G73: the new secret works at once; the one before until the end of the overlap, or not at all without one."""
    api = await keyed(serve)
    old, path = await created(api, "read")
    answer = await api.post(f"{path}/rotate", {"overlap_seconds": 60}, headers=ADMIN)
    new = {"x-api-key": answer.json["secret"]}
    assert answer.json["previous_until"] is not None
    for headers in (old, new):
        assert (await api.get("/agents", headers=headers)).status == 200
    newest = {"x-api-key": (await api.post(f"{path}/rotate", {}, headers=ADMIN)).json["secret"]}
    for headers in (old, new):
        (await api.get("/agents", headers=headers)).problem(401, "unauthorized")
    assert (await api.get("/agents", headers=newest)).status == 200
    await api.post(f"{path}/rotate", {"overlap_seconds": 0.3}, headers=ADMIN)
    async with asyncio.timeout(5):
        while (await api.get("/agents", headers=newest)).status == 200:
            await asyncio.sleep(0.05)
    (await api.get("/agents", headers=newest)).problem(401, "unauthorized")
    await api.delete(path, headers=ADMIN)
    (await api.post(f"{path}/rotate", {}, headers=ADMIN)).problem(404, "key-not-found")


async def test_a_key_that_expires(serve: Serve, pod: Pod) -> None:
    """G73: it is valid until its time, and not a call longer."""
    api = await keyed(serve)
    await api.post("/agents/register", a_body("bot", acp_url=pod.url), headers=ADMIN)
    end = datetime.now(UTC) + timedelta(seconds=1)
    headers, _ = await created(api, "invoke", "read", expires_in_seconds=1)
    assert (await call(api, headers)).status == 200
    async with asyncio.timeout(5):
        while (await call(api, headers)).status == 200:
            await asyncio.sleep(0.05)
    assert datetime.now(UTC) >= end
    (await api.get("/agents", headers=headers)).problem(401, "unauthorized")


async def test_the_secret_is_shown_once_and_stored_nowhere(serve: Serve, sessions: Sessions) -> None:
    """G73: lists and the audit log do not have it, and the database has only its digest."""
    api = await keyed(serve)
    headers, _ = await created(api, "read", owner="platform team", agents=["bot", "team-*"], calls_per_second=5)
    secret = headers["authorization"].removeprefix("Bearer ")
    assert len(secret) > 40
    (listed,) = (await api.get("/keys", headers=ADMIN)).json
    assert (listed["name"], listed["owner"], listed["scopes"]) == ("ci", "platform team", ["read"])
    assert (listed["agents"], listed["calls_per_second"]) == (["bot", "team-*"], 5)
    assert listed["hint"] == secret[-4:]
    assert "secret" not in listed
    told = [(await api.get(path, headers=ADMIN)).body for path in ("/keys", "/audit")]
    told.append(str(await rows(sessions, "SELECT to_jsonb(keys) FROM keys")).encode())
    told.append(str(await rows(sessions, "SELECT to_jsonb(audit) FROM audit")).encode())
    assert not any(secret.encode() in each for each in told)
    assert await rows(sessions, "SELECT secret_sha256 FROM keys") == [(digest_of(secret),)]


BAD_KEYS: list[tuple[dict[str, Any], str]] = [
    ({"scopes": ["read"]}, "name"),
    ({"name": "A b", "scopes": ["read"]}, "name"),
    ({"name": "ci"}, "scopes"),
    ({"name": "ci", "scopes": []}, "scopes"),
    ({"name": "ci", "scopes": ["root"]}, "scopes.0"),
    ({"name": "ci", "scopes": ["read"], "agents": []}, "agents"),
    ({"name": "ci", "scopes": ["read"], "agents": ["*"]}, "agents.0"),
    ({"name": "ci", "scopes": ["read"], "agents": ["a%"]}, "agents.0"),
    ({"name": "ci", "scopes": ["read"], "expires_in_seconds": 0}, "expires_in_seconds"),
    ({"name": "ci", "scopes": ["read"], "calls_per_second": 0}, "calls_per_second"),
    ({"name": "ci", "scopes": ["read"], "secret": "mine"}, "secret"),
]


async def test_keys_that_cannot_be_made(serve: Serve) -> None:
    """400 with the field."""
    api = await keyed(serve)
    for body, field in BAD_KEYS:
        (await api.post("/keys", body, headers=ADMIN)).problem(400, "invalid-request", field)
    assert (await api.get("/keys", headers=ADMIN)).json == []


async def test_names_of_keys(serve: Serve) -> None:
    """A name belongs to one key that is not revoked; lists show revoked keys on request."""
    api = await keyed(serve)
    _, path = await created(api, "read")
    body = {"name": "ci", "scopes": ["read"]}
    assert "ci" in (await api.post("/keys", body, headers=ADMIN)).problem(409, "key-name-taken")["detail"]
    answers = await asyncio.gather(*(api.post("/keys", {**body, "name": "new"}, headers=ADMIN) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409, 409]
    await api.delete(path, headers=ADMIN)
    await created(api, "read")
    assert len((await api.get("/keys", headers=ADMIN)).json) == 2
    assert len((await api.get("/keys?revoked=true", headers=ADMIN)).json) == 3
    for missing in ("/keys/7", "/keys/00000000-0000-4000-8000-000000000000"):
        (await api.delete(missing, headers=ADMIN)).problem(404, "key-not-found")


async def test_the_ledger_and_the_audit_log_name_the_key(serve: Serve, sessions: Sessions) -> None:
    """G74: with the request id and whom the caller acts for, in the ledger, in events, and in the audit log."""
    api = await keyed(serve)
    headers, _ = await created(api, "register", "promote", "admin", name="ci-deploy")
    headers |= {"x-request-id": "build-17", "x-podium-on-behalf-of": "alice@example.com"}
    agent = (await api.post("/agents/register", a_body("bot", deployment_id="v1"), headers=headers)).json
    path = f"/agents/{agent['id']}"
    for version in ("v2", "v3"):
        await api.post("/agents/register", a_body("bot", deployment_id=version), headers=headers)
    await api.post(f"{path}/deployments/v2/promote", {"reason": "tested"}, headers=headers)
    ledger = (await api.get(f"{path}/promotions", headers=headers)).json[0]
    who = {"actor": "key:ci-deploy", "request_id": "build-17", "on_behalf_of": "alice@example.com"}
    assert {name: ledger[name] for name in who} == who
    payload = (await rows(sessions, "SELECT payload FROM outbox WHERE type LIKE '%promoted%' ORDER BY id DESC"))[0][0]
    assert {name: payload[name] for name in who} == who

    await api.call("PATCH", path, json={"description": "new", "auto_promote": "never"}, headers=headers)
    await api.call("PATCH", path, json={"description": "new"}, headers=headers)
    await api.post(f"{path}/deployments", {"docker_image": "i", "id": "v4"}, headers=headers)
    await api.delete(f"{path}/deployments/v3", headers=headers)
    await api.delete(path, headers=headers)
    audit = (await api.get("/audit", headers=headers)).json
    assert [(each["action"], each["subject"]) for each in audit] == [
        ("agent.deleted", agent["id"]),
        ("deployment.deleted", "v3"),
        ("deployment.created", "v4"),
        ("agent.changed", agent["id"]),
        ("key.created", "ci-deploy"),
    ]
    for each in audit[:-1]:
        assert {name: each[name] for name in who} == who
        assert each["agent_name"] == "bot"
    assert audit[3]["details"] == {"description": "new", "auto_promote": "never"}
    assert audit[-1]["actor"] == "api-key"
    assert (await api.get(f"/audit?before={audit[1]['id']}&limit=2", headers=headers)).json == audit[2:4]
    assert (await api.get("/audit?agent=bot", headers=headers)).json == audit[:-1]


async def test_the_audit_log_of_one_actor_and_one_action(serve: Serve) -> None:
    """Filters go together, with the agent and with pages by id; one that cannot match anything is refused."""
    api = await keyed(serve)
    headers, _ = await created(api, "register", "admin", name="ci-deploy")
    for number in range(3):
        version = f"v{number}"
        for sent in (headers, ADMIN):
            name = f"bot-{'ci' if sent is headers else 'root'}"
            body = a_body(name, deployment_id=f"{name}-{version}")
            agent = (await api.post("/agents/register", body, headers=sent)).json
            await api.call("PATCH", f"/agents/{agent['id']}", json={"description": version}, headers=sent)
            await api.post(f"/agents/{agent['id']}/deployments", {"docker_image": "i"}, headers=sent)
    audit = (await api.get("/audit", headers=ADMIN)).json

    async def found(query: str) -> Any:
        answer = await api.get(f"/audit?{query}", headers=ADMIN)
        assert answer.status == 200, answer.body
        return answer.json

    by_key = [each for each in audit if each["actor"] == "key:ci-deploy"]
    changes = [each for each in by_key if each["action"] == "agent.changed"]
    assert (len(audit), len(by_key), len(changes)) == (13, 6, 3)
    assert await found("actor=key:ci-deploy") == by_key
    assert await found("action=agent.changed") == [each for each in audit if each["action"] == "agent.changed"]
    both = "actor=key:ci-deploy&action=agent.changed"
    assert await found(both) == changes
    assert await found(f"{both}&limit=2") == changes[:2]
    assert await found(f"{both}&limit=2&before={changes[1]['id']}") == changes[2:]
    assert await found(f"{both}&agent=bot-root") == []
    assert await found("actor=key:ci") == []
    for bad in ("action=Agent.changed", "action=", "actor=%00", f"actor={'x' * 301}", "subject=x"):
        (await api.get(f"/audit?{bad}", headers=ADMIN)).problem(400, "invalid-request", bad.partition("=")[0])


async def test_what_cannot_stand_for_somebody(serve: Serve) -> None:
    """400 for a long or unprintable value, and nothing changes."""
    api = await keyed(serve)
    agent = (await api.post("/agents/register", a_body("bot"), headers=ADMIN)).json
    for text in ("x" * 201, "a\tb", "\x80"):
        answer = await api.delete(f"/agents/{agent['id']}", headers={**ADMIN, "x-podium-on-behalf-of": text})
        answer.problem(400, "invalid-request", "x-podium-on-behalf-of")
    assert (await api.get(f"/agents/{agent['id']}", headers=ADMIN)).json["status"] == "Ready"


async def test_a_stream_of_events_ends_with_its_key(serve: Serve) -> None:
    """G73: within a heartbeat; the client that comes back gets 401."""
    api = await keyed(serve, sse_heartbeat=timedelta(seconds=0.2))
    headers, path = await created(api, "read")
    async with api.session.get(f"{api.url}/events", headers=headers) as response:
        assert response.status == 200
        await api.post("/agents/register", a_body("bot"), headers=ADMIN)
        async with asyncio.timeout(5):
            while b"podium.agent.registered.v1" not in await response.content.readany():
                pass
        await api.delete(path, headers=ADMIN)
        async with asyncio.timeout(5):
            while await response.content.readany():
                pass
    (await api.get("/events", headers=headers)).problem(401, "unauthorized")


async def test_keys_on_an_api_without_required_keys(api: Api) -> None:
    """G71: on loopback no key is needed, but one that is sent says who calls, and must be valid."""
    await api.post("/keys", {"name": "amy", "scopes": ["read"]})
    secret = (await api.post("/keys", {"name": "ci", "scopes": ["register", "promote"]})).json["secret"]
    headers = {"x-api-key": secret}
    agent = (await api.post("/agents/register", a_body("bot", deployment_id="v1"), headers=headers)).json
    await api.post("/agents/register", a_body("bot", deployment_id="v2"))
    await api.post(f"/agents/{agent['id']}/deployments/v2/promote", headers=headers)
    ledger = (await api.get(f"/agents/{agent['id']}/promotions")).json
    assert ledger[0]["actor"] == "key:ci"
    (await api.get("/agents", headers=headers)).problem(403, "insufficient-scope")
    (await api.get("/agents", headers={"x-api-key": "podium_wrong"})).problem(401, "unauthorized")
    assert (await api.get("/agents", headers={"x-api-key": "another-system"})).status == 200


async def test_an_api_that_only_takes_named_keys(serve: Serve) -> None:
    """G71: PODIUM_REQUIRE_KEYS, without PODIUM_API_KEY."""
    opened = await serve()
    secret = (await opened.post("/keys", {"name": "ci", "scopes": ["read"]})).json["secret"]
    api = await serve(require_keys=True)
    (await api.get("/agents")).problem(401, "unauthorized")
    (await api.get("/agents", headers={"x-api-key": ""})).problem(401, "unauthorized")
    assert (await api.get("/agents", headers={"x-api-key": secret})).status == 200


async def test_guessing_is_limited_per_address(serve: Serve) -> None:
    """G75: after the limit guesses get 429 with `retry-after`; known keys and the API key go on."""
    api = await keyed(serve, auth_failures_per_minute=5)
    headers, _ = await created(api, "read")
    assert (await api.get("/agents", headers=headers)).status == 200
    statuses = [(await api.get("/agents", headers={"x-api-key": f"podium_{number}"})).status for number in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    refused = await api.get("/agents", headers={"x-api-key": "guess"})
    refused.problem(429, "too-many-failures")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (await call(api, {"x-api-key": "guess"})).rpc_error(429, "too-many-failures")
    assert (await api.get("/agents", headers=headers)).status == 200
    assert (await api.get("/agents", headers=ADMIN)).status == 200
    assert (await api.get("/agents")).status == 401


async def test_calls_of_a_key_are_limited(serve: Serve, pod: Pod) -> None:
    """G75: calls per second, 429 with `retry-after`; other callers are not affected."""
    api = await keyed(serve)
    await api.post("/agents/register", a_body("bot", acp_url=pod.url), headers=ADMIN)
    limited, _ = await created(api, "invoke", calls_per_second=2)
    answers = [await call(api, limited) for _ in range(6)]
    refused = [answer for answer in answers if answer.status != 200]
    assert 2 <= len(refused) <= 4
    for answer in refused:
        answer.rpc_error(429, "too-many-calls")
        assert answer.headers["retry-after"] == "1"
    assert (await call(api, ADMIN)).status == 200
    async with asyncio.timeout(5):
        while (await call(api, limited)).status != 200:
            await asyncio.sleep(0.1)


async def test_calls_of_an_agent_are_limited(serve: Serve) -> None:
    """G75: calls under way, of all callers together; a call that ends makes room."""
    resume = asyncio.Event()
    async with running_pod(pausing(b"{", resume, b"}")) as slow:
        api = await keyed(serve)
        agent = (await api.post("/agents/register", a_body("bot", acp_url=slow.url), headers=ADMIN)).json
        path = f"/agents/{agent['id']}"
        changed = await api.call("PATCH", path, json={"calls_in_flight": 2}, headers=ADMIN)
        assert changed.json["calls_in_flight"] == 2
        waiting = [asyncio.create_task(call(api, ADMIN)) for _ in range(2)]
        async with asyncio.timeout(5):
            while len(slow.seen) < 2:
                await asyncio.sleep(0.01)
        (await call(api, ADMIN)).rpc_error(429, "too-many-calls")
        resume.set()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert (await call(api, ADMIN)).status == 200
        changed = await api.call("PATCH", path, json={"calls_in_flight": "none"}, headers=ADMIN)
        assert changed.json["calls_in_flight"] is None


async def test_when_a_key_was_last_used(serve: Serve, sessions: Sessions) -> None:
    """The time is stored apart from the requests, and never goes back."""
    api = await keyed(serve)
    headers, _ = await created(api, "read")
    assert (await api.get("/keys", headers=ADMIN)).json[0]["last_used_at"] is None
    await api.get("/agents", headers=headers)
    key_id = (await rows(sessions, "SELECT id FROM keys"))[0][0]
    used, before = LastUsed(), datetime.now(UTC)
    used.record(key_id)
    await in_transaction(sessions, lambda session: store_used(session, used.take()))
    await in_transaction(sessions, lambda session: store_used(session, {key_id: before - timedelta(days=1)}))
    stored = datetime.fromisoformat((await api.get("/keys", headers=ADMIN)).json[0]["last_used_at"])
    assert before <= stored <= datetime.now(UTC)
