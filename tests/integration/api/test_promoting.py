"""Promoting and changing agents over HTTP: conditions, repetition, lists and policies."""

import asyncio
from collections.abc import Mapping

import pytest

from services.storage.database import Sessions
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.support.waiting import rows

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def promote(api: Api, agent_id: str, deployment_id: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Promote; returns the answer, success or not."""
    return await api.post(f"/agents/{agent_id}/deployments/{deployment_id}/promote", headers=headers or {})


async def test_promote_answers_the_deployment_and_the_new_generation(api: Api) -> None:
    """The header is the next If-Match; answers about the agent contain it too."""
    agent = await api.register("bot", "v1")
    await api.register("bot", "v2", acp_url="http://10.0.0.2:8000")
    answer = await promote(api, agent["id"], "v2", {"If-Match": '"1"'})
    assert answer.status == 200
    assert answer.headers["x-podium-generation"] == "2"
    assert answer.json["is_production"]
    assert answer.json["promoted_at"]
    for path in (f"/agents/{agent['id']}", "/agents/name/bot"):
        read = await api.get(path)
        assert read.headers["x-podium-generation"] == "2"
        assert read.json["generation"] == 2
        assert read.json["production_deployment_id"] == "v2"
        assert read.json["acp_url"] == "http://10.0.0.2:8000"


async def test_promoting_what_is_in_production_changes_nothing(api: Api, sessions: Sessions) -> None:
    """200 with the same generation and no event, even with an outdated condition."""
    agent = await api.register("bot", "v1")
    before = (await api.get(f"/agents/{agent['id']}/deployments/v1")).json
    for headers in ({}, {"If-Match": '"77"'}, {"If-Match": '"1"'}):
        answer = await promote(api, agent["id"], "v1", headers)
        assert answer.status == 200
        assert answer.headers["x-podium-generation"] == "1"
        assert answer.json == before
    assert (await rows(sessions, "SELECT count(*) AS n FROM outbox WHERE type LIKE '%promoted%'"))[0].n == 1


async def test_a_condition_that_does_not_hold(api: Api) -> None:
    """412, and nothing changes; 404 and 410 are checked before the condition, Ready after it."""
    agent = await api.register("bot", "v1")
    await api.register("bot", "v2")
    await api.register("bot", "gone")
    await api.delete(f"/agents/{agent['id']}/deployments/gone")
    await api.post(f"/agents/{agent['id']}/deployments", {"id": "pending", "docker_image": "i"})
    stale = {"If-Match": '"9223372036854775807"'}
    (await promote(api, agent["id"], "v2", stale)).problem(412, "generation-mismatch")
    (await promote(api, agent["id"], "pending", stale)).problem(412, "generation-mismatch")
    (await promote(api, agent["id"], "nowhere", stale)).problem(404, "deployment-not-found")
    (await promote(api, agent["id"], "gone", stale)).problem(410, "deployment-deleted")
    rolled = await api.post(f"/agents/{agent['id']}/rollback", headers=stale)
    rolled.problem(412, "generation-mismatch")
    assert (await api.get("/agents/name/bot")).json["generation"] == 1
    assert (await promote(api, agent["id"], "v2", {"If-Match": "*"})).status == 200


MALFORMED_CONDITIONS = [
    'W/"1"',
    '"1", "2"',
    "1",
    '"',
    '""',
    '"1',
    '"01"',
    '"-1"',
    '"1.0"',
    '"x"',
    "",
    "**",
    '"' + "9" * 5000,
]


async def test_a_malformed_condition(api: Api, subtests: pytest.Subtests) -> None:
    """400 before the agent is looked up."""
    agent = await api.register("bot", "v1")
    await api.register("bot", "v2")
    for value in MALFORMED_CONDITIONS:
        with subtests.test(value[:20]):
            for deployment_id in ("v1", "v2", "nowhere"):
                answer = await promote(api, agent["id"], deployment_id, {"If-Match": value})
                answer.problem(400, "invalid-request", "If-Match")
            rolled = await api.post(f"/agents/{agent['id']}/rollback", headers={"If-Match": value})
            rolled.problem(400, "invalid-request", "If-Match")
    assert (await api.get("/agents/name/bot")).json["generation"] == 1


async def test_promotes_at_once_with_the_same_condition(api: Api) -> None:
    """Exactly one succeeds; the others get 412."""
    agent = await api.register("bot", "v0")
    targets = [f"v{number}" for number in range(1, 21)]
    for target in targets:
        await api.register("bot", target)
    answers = await asyncio.gather(*(promote(api, agent["id"], target, {"If-Match": '"1"'}) for target in targets))
    assert sorted(answer.status for answer in answers) == [200] + [412] * 19
    [winner] = [answer.json["id"] for answer in answers if answer.status == 200]
    read = (await api.get("/agents/name/bot")).json
    assert (read["generation"], read["production_deployment_id"]) == (2, winner)


async def test_changing_an_agent(api: Api) -> None:
    """Fields in the request are set, all others stay."""
    agent = await api.register("bot", "v1", description="first")
    path = f"/agents/{agent['id']}"
    await api.post(f"{path}/rollback", {"to": "v1"})
    changed = await api.call("PATCH", path, json={"auto_promote": "always", "auto_promote_paused": False})
    assert changed.status == 200
    assert (changed.json["auto_promote"], changed.json["auto_promote_paused"]) == ("always", False)
    assert changed.headers["x-podium-generation"] == "1"
    assert (await api.call("PATCH", path, json={"description": "second"})).json["auto_promote"] == "always"
    assert (await api.get(path)).json["description"] == "second"
    await api.register("bot", "v2")
    assert (await api.get(path)).json["production_deployment_id"] == "v2"


async def test_lists_are_paged_and_ordered(api: Api) -> None:
    """By page, or after an id without gaps; the answer contains the cursor of the event stream."""
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        await api.register(name)
    first = await api.get("/agents?order_by=name&order_direction=asc&limit=2&page_number=2")
    assert [agent["name"] for agent in first.json] == ["c", "d"]
    assert first.headers["x-podium-cursor"].split(".")[0].isdigit()
    assert all(agent["sequence"] > 0 for agent in first.json)
    collected: list[str] = []
    after = "00000000-0000-0000-0000-000000000000"
    while page := (await api.get(f"/agents?limit=2&after={after}")).json:
        collected += [agent["name"] for agent in page]
        after = page[-1]["id"]
    assert sorted(collected) == names


async def test_the_cursor_is_taken_before_the_first_row_is_read(api: Api, sessions: Sessions) -> None:
    """A change that commits while the list is read has its event after the cursor."""
    await api.register("bot", "v1")
    answer = await api.get("/agents")
    cursor = int(answer.headers["x-podium-cursor"].split(".")[0])
    await api.register("bot", "v2")
    [newest] = await rows(sessions, "SELECT max(xid::text::bigint) AS xid FROM outbox")
    assert cursor <= newest.xid
    [oldest] = await rows(sessions, "SELECT max(xid::text::bigint) AS xid FROM outbox WHERE subject = 'v1'")
    assert oldest.xid < cursor


async def test_trace_context_reaches_the_events(api: Api, sessions: Sessions) -> None:
    """A valid W3C traceparent is copied to the events; an invalid one is not."""
    agent = await api.register("bot", "v1")
    await api.register("bot", "v2")
    await promote(api, agent["id"], "v2", {"traceparent": TRACEPARENT})
    await promote(api, agent["id"], "v1", {"traceparent": "00-nonsense"})
    events = await rows(sessions, "SELECT traceparent FROM outbox WHERE type LIKE '%promoted%' ORDER BY sequence")
    assert [event.traceparent for event in events] == [None, TRACEPARENT, None]


async def test_creating_a_deployment_again(api: Api) -> None:
    """Idempotent by its id; when its pod registers it becomes Ready and keeps its fields."""
    agent = await api.register("bot", "v1")
    path = f"/agents/{agent['id']}/deployments"
    body = {"id": "v2", "docker_image": "image:2", "helm_release_name": "release-2"}
    first, again = await api.post(path, body), await api.post(path, body)
    assert first.json == again.json
    await api.register("bot", "v2", docker_image="image:2")
    read = (await api.get(f"{path}/v2")).json
    assert (read["status"], read["docker_image"], read["helm_release_name"]) == ("Ready", "image:2", "release-2")
    assert not read["is_production"]


async def test_a_build_gets_its_first_pod(api: Api) -> None:
    """BuildOnly until a pod registers; registering the build again changes nothing."""
    body = {"name": "bot", "description": "d", "docker_image": "image:1"}
    first, again = await api.post("/agents/register-build", body), await api.post("/agents/register-build", body)
    assert first.json == again.json
    assert first.json["status"] == "BuildOnly"
    agent = await api.register("bot", "v1")
    assert (agent["id"], agent["status"]) == (first.json["id"], "Ready")
    assert (await api.get(f"/agents/{agent['id']}/deployments/v1")).json["docker_image"] == "image:1"


async def test_setting_an_agent_s_policies(api: Api) -> None:
    """The failure policy and the probe parameters; 'default' restores the settings."""
    agent = await api.register("bot", "v1")
    path = f"/agents/{agent['id']}"
    names = ("on_failure", "probe_interval_seconds", "probe_threshold", "probe_timeout_seconds")
    assert [agent[name] for name in names] == ["hold", None, None, None]
    values = {
        "on_failure": "rollback",
        "probe_interval_seconds": 10,
        "probe_threshold": 5,
        "probe_timeout_seconds": 0.5,
    }
    changed = (await api.call("PATCH", path, json=values)).json
    assert {name: changed[name] for name in names} == values
    assert (await api.call("PATCH", path, json={"probe_threshold": 5.0})).json["probe_threshold"] == 5
    back = (await api.call("PATCH", path, json={"probe_threshold": "default", "probe_timeout_seconds": None})).json
    assert [back[name] for name in names] == ["rollback", 10, None, 0.5]
    refused = {
        "on_failure": "panic",
        "probe_interval_seconds": 0,
        "probe_threshold": 1.5,
        "probe_timeout_seconds": "soon",
    }
    for name, value in refused.items():
        answer = await api.call("PATCH", path, json={name: value})
        assert answer.status == 400, answer.body
        assert answer.json["field"].startswith(name)
    assert [(await api.get(path)).json[name] for name in names] == ["rollback", 10, None, 0.5]


async def test_with_proof_a_registration_does_not_make_ready(serve: Serve) -> None:
    """With `ready_requires_probe` an HTTP registration stays Pending too, and a promote is refused with the reason."""
    api = await serve(ready_requires_probe=True)
    agent = await api.register("bot", "v1")
    path = f"/agents/{agent['id']}/deployments/v1"
    assert ((await api.get(path)).json["status"], agent["production_deployment_id"]) == ("Pending", None)
    refused = (await api.post(f"{path}/promote")).problem(409, "deployment-not-ready")
    assert "has not answered a probe yet" in refused["detail"]
