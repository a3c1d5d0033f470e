"""Lists over HTTP: the same bytes as single answers and as the models that document them."""

from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from pydantic import BaseModel
from sqlalchemy import text

from api.http.responses import DeploymentAnswer, PromotionAnswer, RegistrationAnswer
from services.agents.queries import list_deployments
from services.promotion.history import history
from services.registration.inbox import Lifetime, recent_registrations
from services.storage.database import Sessions, in_transaction
from services.storage.pages import Page
from tests.integration.api.client import Api
from tests.support.factories import a_body, an_id

ODD = r"""{
"ключ \"\\\/": "\u2028 \u007f \ud83d\ude00 </script> \t", "big": 123456789012345678901234567890, "1e400": 1e400,
"tiny": 1e-400, "floats": [1.50, -0.0, 1e22, 1.5e-7, 0.1, 100000000000000000000.5], "deep": [[{"": [null, true, {}]}]],
"int": [18446744073709551615, -9223372036854775809, 0]
}"""
CHANGES = """
UPDATE agents SET registration_metadata = CAST(:odd AS jsonb), description = E'a\\n"b"\\u2029';
UPDATE agents SET created_at = '2026-01-02T03:04:05Z', status_reason = 'why', probe_interval_seconds = 1.5,
    calls_per_second = 0.1, calls_in_flight = 3 WHERE name = 'legacy';
UPDATE agents SET created_at = '2026-01-02T03:04:05.12+05:00', docker_image = '' WHERE name = 'build';
UPDATE deployments SET registration_metadata = CAST(:odd AS jsonb), docker_image = NULL WHERE id = 'v2';
UPDATE deployments SET docker_image = '', created_at = '2026-01-01Z' WHERE id = 'v3';
INSERT INTO conversations (agent_id, key_sha256, deployment_id, preview, last_seen_at, started_at)
    SELECT agent_id, sha256('x'), id, false, now(), now() FROM deployments WHERE id = 'v1';
UPDATE deployments SET draining_since = now() WHERE id IN ('v1', 'v3') AND NOT is_production;
UPDATE deployments SET drained_at = now(), sgp_deploy_id = 'sgp' WHERE id = 'v4';
INSERT INTO parked (key, agent_name, reason, error, routing_key, headers, body, attempts)
    VALUES ('k', 'bot', 'malformed', 'it is "odd" ☃', 'register.bot', '{}', '', 7)
"""


async def stage(api: Api, sessions: Sessions) -> UUID:
    """An agent with versions in all states, a ledger and refused announcements, and other kinds of agents."""
    bot = await api.register("bot", "v1")
    for version in ("v2", "v3", "v4"):
        await api.register("bot", version)
    for version in ("v2", "v1", "v2", "v3", "v2"):
        await api.promote(bot, version)
    await api.post(f"/agents/{bot['id']}/deployments", {"id": "v5", "docker_image": "bot:5"})
    await api.register("legacy", acp_url="http://legacy:8000")
    await api.post("/agents/register-build", {"name": "build", "description": "ö"})
    thief = await api.post("/agents/register", a_body("thief", deployment_id="v1"))
    thief.problem(409, "deployment-of-another-agent")
    async with sessions() as session, session.begin():
        for change in CHANGES.split(";\n"):
            await session.execute(text(change), {"odd": ODD} if ":odd" in change else {})
    return UUID(bot["id"])


def written(answers: list[Any]) -> bytes:
    """The models as Litestar writes them."""
    return msgspec.json.encode([each.model_dump(mode="json") for each in answers if isinstance(each, BaseModel)])


async def test_agents_in_lists_are_single_answers(api: Api, sessions: Sessions) -> None:
    """G97: byte for byte, in each order; a page behind the last one is empty and has a cursor."""
    await stage(api, sessions)
    orders = ("order_by=name&order_direction=asc", "order_by=updated_at", "limit=2", f"after={UUID(int=0)}")
    for query in ("", *(f"?{order}" for order in orders)):
        answer = await api.get(f"/agents{query}")
        assert len(answer.json) == (2 if "limit" in query else 3), query
        assert answer.headers["content-type"] == "application/json"
        singles = [(await api.get(f"/agents/{agent['id']}")).body for agent in answer.json]
        assert answer.body == b"[%s]" % b",".join(singles), query
    empty = await api.get("/agents?page_number=1000000000")
    assert (empty.body, empty.headers["x-podium-cursor"].count(".")) == (b"[]", 1)


async def test_other_lists_are_what_their_models_say(api: Api, sessions: Sessions) -> None:
    """G97: versions, ledger and announcements, byte for byte, in each order."""
    agent_id = await stage(api, sessions)
    path = f"/agents/{agent_id}"
    for order_by in ("created_at", "id", "promoted_at", "status"):
        page = Page(order_by=order_by, direction="asc")
        versions = await in_transaction(sessions, partial(list_deployments, agent_id=agent_id, page=page))
        answer = await api.get(f"{path}/deployments?order_by={order_by}&order_direction=asc")
        assert answer.body == written([DeploymentAnswer.of(each, in_list=True) for each in versions])
    draining = [each["draining"] and each["draining"]["open_conversations"] for each in answer.json]
    assert sorted(draining, key=str) == [0, 1, None, None, None]
    changes = await in_transaction(sessions, lambda session: history(session, agent_id, limit=50))
    assert (await api.get(f"{path}/promotions")).body == written([PromotionAnswer.of(each) for each in changes])
    rows = await in_transaction(sessions, lambda session: recent_registrations(session, Lifetime(), Page()))
    answer = await api.get("/registrations")
    assert answer.body == written([RegistrationAnswer.model_validate(each, from_attributes=True) for each in rows])
    assert {row["outcome"] for row in answer.json} == {"Registered", "Rejected", "Parked"}
    own = [row for row in answer.json if row["agent_name"] == "bot"]
    assert (await api.get(f"{path}/registrations")).json == own
    assert (await api.get("/registrations?agent=bot")).json == own


async def test_lists_of_an_agent_that_does_not_exist(api: Api) -> None:
    """404; a page behind the last one is empty."""
    agent = await api.register("bot", "v1")
    for name in ("deployments", "promotions", "registrations"):
        (await api.get(f"/agents/{an_id()}/{name}")).problem(404, "agent-not-found")
        assert (await api.get(f"/agents/{agent['id']}/{name}?page_number=2")).body == b"[]"
