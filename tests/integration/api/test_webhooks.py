"""Webhooks over HTTP: their whole life, who sees them, and what the audit log says of them."""

from ipaddress import IPv4Network
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook as Verifier

from services.storage.database import Sessions
from services.webhooks import registry
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.support.factories import a_body
from tests.support.receivers import running_receiver
from tests.support.waiting import rows

ADMIN = {"x-api-key": "the-api-key"}
URL = "https://receiver.example/hooks?token=one"


async def created(api: Api, **fields: Any) -> dict[str, Any]:
    """The answer for a new webhook."""
    answer = await api.post("/webhooks", {"url": URL, **fields})
    assert answer.status == 200, answer.body
    webhook: dict[str, Any] = answer.json
    return webhook


async def test_the_life_of_a_webhook(api: Api, sessions: Sessions) -> None:
    """Its secret is shown when it is made and rotated, and nowhere else; each change is in the audit log."""
    await api.register("bot")
    made = await created(
        api, agent="bot", event_types=["podium.deployment.", "podium.agent.deleted.v1"], description="d", owner="o"
    )
    path = f"/webhooks/{made['id']}"
    assert made["secret"].startswith("whsec_")
    assert (made["agent_name"], made["status"], made["missed"], made["waiting_agents"]) == ("bot", "active", 0, 0)
    shown = (await api.get(path)).json
    assert shown == {name: value for name, value in made.items() if name != "secret"}
    assert (await api.get("/webhooks?agent=bot")).json == (await api.get("/webhooks")).json == [shown]
    assert (await api.get("/webhooks?agent=other")).json == []
    rotated = (await api.post(f"{path}/rotate", {"overlap_seconds": 60})).json
    assert rotated["secret"] != made["secret"]
    assert rotated["previous_until"] is not None
    for _ in range(2):
        assert (await api.post(f"{path}/pause")).json["status"] == "paused"
    assert (await api.post(f"{path}/resume", {})).json["status"] == "active"
    assert (await api.post(f"{path}/resume", {"cursor": "now"})).status == 200
    assert (await api.post(f"{path}/replay", {"since": "2026-01-01T00:00:00Z"})).status == 200
    assert (await api.get(f"{path}/deliveries")).json == []
    assert (await api.delete(path)).status == 200
    for gone in (await api.get(path), await api.delete(path), await api.post(f"{path}/pause")):
        gone.problem(404, "webhook-not-found")
    audit = (await api.get("/audit?agent=bot")).json
    assert [entry["action"].removeprefix("webhook.") for entry in audit][::-1] == [
        *("created", "rotated", "paused", "resumed", "resumed", "replayed", "deleted")
    ]
    assert {entry["subject"] for entry in audit} == {made["id"]}
    said = str(audit) + str(await rows(sessions, "SELECT * FROM audit"))
    assert made["secret"] not in said
    assert "token=one" not in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "ftp://receiver.example/"),
        ("url", "https://amy:secret@receiver.example/"),
        ("url", "https://receiver.example/#part"),
        ("url", "https:///hook"),
        ("url", "https://receiver.example/a b"),
        ("url", "javascript:alert(1)"),
        ("event_types", []),
        ("event_types", ["podium.deployment.promoted"]),
        ("event_types", ["podium.unheard."]),
        ("agent", "Not A Name"),
        ("owner", "o" * 201),
        ("other", 1),
    ],
)
async def test_what_no_webhook_may_be(api: Api, field: str, value: object) -> None:
    """Refused with the field that is wrong, before anything is stored."""
    answer = await api.post("/webhooks", {"url": URL, field: value})
    assert answer.status == 400, answer.body
    assert answer.json["field"].startswith(field)
    assert (await api.get("/webhooks")).json == []


async def test_unknown_agents_and_cursors(api: Api) -> None:
    """An agent must exist, and a cursor must be one of this installation's."""
    (await api.post("/webhooks", {"url": URL, "agent": "nobody"})).problem(404, "agent-not-found")
    path = f"/webhooks/{(await created(api))['id']}"
    for body in ({}, {"since": "2026-01-01T00:00:00Z", "cursor": "1.1"}, {"cursor": "one"}, {"since": "yesterday"}):
        assert (await api.post(f"{path}/replay", body)).status == 400, body
    (await api.post(f"{path}/replay", {"cursor": "99999999999999.1"})).problem(400, "invalid-request", "cursor")
    (await api.post(f"{path}/resume", {"cursor": "99999999999999.1"})).problem(400, "invalid-request", "cursor")
    (await api.get(f"/webhooks/{uuid4()}")).problem(404, "webhook-not-found")
    (await api.get("/webhooks/1")).problem(404, "webhook-not-found")


async def test_a_bound_key_and_the_webhooks_of_others(serve: Serve) -> None:
    """G72: it makes and sees webhooks of its agents alone; those of other agents and of all are not there for it."""
    api = await serve(api_key=SecretStr(ADMIN["x-api-key"]))
    for name in ("team-bot", "other-bot"):
        await api.post("/agents/register", a_body(name), headers=ADMIN)
    body = {"name": "ci", "scopes": ["admin"], "agents": ["team-*"]}
    bound = {"x-api-key": (await api.post("/keys", body, headers=ADMIN)).json["secret"]}
    foreign = [
        (await api.post("/webhooks", {"url": URL, **of}, headers=ADMIN)).json["id"]
        for of in ({"agent": "other-bot"}, {})
    ]
    own = (await api.post("/webhooks", {"url": URL, "agent": "team-bot"}, headers=bound)).json
    (await api.post("/webhooks", {"url": URL}, headers=bound)).problem(403, "all-agents-needed")
    (await api.post("/webhooks", {"url": URL, "agent": "other-bot"}, headers=bound)).problem(404, "agent-not-found")
    assert [each["id"] for each in (await api.get("/webhooks", headers=bound)).json] == [own["id"]]
    for each in foreign:
        path = f"/webhooks/{each}"
        for answer in (
            await api.get(path, headers=bound),
            await api.get(f"{path}/deliveries", headers=bound),
            await api.delete(path, headers=bound),
            await api.post(f"{path}/pause", headers=bound),
            await api.post(f"{path}/test", headers=bound),
            await api.post(f"{path}/resume", {}, headers=bound),
            await api.post(f"{path}/rotate", {}, headers=bound),
            await api.post(f"{path}/replay", {"cursor": "0.0"}, headers=bound),
        ):
            answer.problem(404, "webhook-not-found")


async def test_a_webhook_of_a_deleted_agent(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown as ended, an agent of the same name has nothing to do with it, and others take its place."""
    monkeypatch.setattr(registry, "MOST_WEBHOOKS", 2)
    agent = await api.register("bot")
    old = await created(api, agent="bot")
    all_agents = await created(api)
    (await api.post("/webhooks", {"url": URL})).problem(409, "too-many-webhooks")
    assert (await api.delete(f"/agents/{agent['id']}")).status == 200
    await api.register("bot")
    new = await created(api, agent="bot")
    shown = {each["id"]: (each["status"], each["ended"]) for each in (await api.get("/webhooks")).json}
    assert shown == {old["id"]: ("active", True), all_agents["id"]: ("active", False), new["id"]: ("active", False)}
    assert (await api.get(f"/webhooks/{old['id']}")).json["ended"]
    (await api.post("/webhooks", {"url": URL})).problem(409, "too-many-webhooks")


async def test_a_test_event(serve: Serve) -> None:
    """It is sent at once and signed as all others; with the default rules, no address of this machine gets it."""
    closed = await serve()
    async with running_receiver(lambda _: 418) as receiver:
        api = await serve(webhook_dial_networks=(IPv4Network("127.0.0.0/8"),))
        made = await created(api, url=receiver.url)
        answer = (await api.post(f"/webhooks/{made['id']}/test")).json
        assert (answer["outcome"], answer["status"], answer["detail"]) == ("refused", 418, "status 418")
        denied = (await closed.post(f"/webhooks/{made['id']}/test")).json
        assert (denied["outcome"], denied["status"]) == ("denied", None)
    (received,) = receiver.seen
    event = Verifier(made["secret"]).verify(received.body, received.headers)
    assert event["type"] == "podium.webhook.test.v1"
    assert (await api.get(f"/webhooks/{made['id']}/deliveries")).json == []
