"""Registrations in the API: why is my pod not there?"""

from functools import partial

from pydantic_core import to_json

from services.registration.batch import Incoming, read_message, register_batch
from services.registration.parked import Envelope
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import Api
from tests.support.factories import a_body, incoming


async def decided(sessions: Sessions, *messages: Incoming) -> None:
    """Decide these messages as a registrar does, one batch each."""
    for message in messages:
        await in_transaction(sessions, partial(register_batch, batch=[message]))


def unreadable(key: str, body: bytes) -> Incoming:
    """A message that is not a registration."""
    return read_message(Envelope(key, body))


async def outcomes(api: Api, path: str) -> list[tuple[str | None, str, str | None]]:
    """Deployment, outcome and reason of each row."""
    answer = await api.get(path)
    assert answer.status == 200, answer.body
    return [(row["deployment_id"], row["outcome"], row["reason"]) for row in answer.json]


async def test_refusals_for_a_name_without_an_agent_are_listed(api: Api, sessions: Sessions) -> None:
    """A pod that was refused may have no agent yet."""
    malformed = to_json({"name": "bot", "message_id": "0b0e6b6e-2d3f-4f0e-9f55-7d0f8b1f1a01"})
    await decided(sessions, unreadable("agent.bot", malformed), unreadable("agent.bot", b"no JSON"))
    await decided(sessions, incoming("other", key="agent.bot"), incoming("another", deployment_id="a1"))
    assert (await api.get("/agents/name/bot")).status == 404
    answer = (await api.get("/registrations?agent=bot")).json
    assert [row["outcome"] for row in answer] == ["Rejected", "Parked", "Rejected"]
    assert "does not name the agent 'other'" in answer[0]["reason"]
    assert answer[1]["message_id"] is None
    assert answer[1]["parked_id"]
    assert "acp_url" in answer[2]["reason"]
    assert {row["agent_name"] for row in answer} == {"bot"}


async def test_announcements_come_newest_first_and_in_pages(api: Api, sessions: Sessions) -> None:
    """Decided and parked announcements are in one list."""
    for version in ("v1", "v2", "v3"):
        await decided(sessions, incoming("bot", deployment_id=version))
    await decided(sessions, unreadable("agent.bot", b"no JSON"), incoming("bot", deployment_id="v4"))
    whole = await outcomes(api, "/registrations?agent=bot")
    assert [deployment for deployment, _, _ in whole] == ["v4", None, "v3", "v2", "v1"]
    paged = [row for page in (1, 2, 3) for row in await outcomes(api, f"/registrations?limit=2&page_number={page}")]
    assert paged == whole
    assert await outcomes(api, "/registrations?agent=bot&limit=2&page_number=9") == []


async def test_a_parked_message_that_was_decided_is_listed_once(api: Api, sessions: Sessions) -> None:
    """It is in the inbox and among the parked messages."""
    first, second = (incoming("bot", deployment_id="v1", docker_image=f"bot:{number}") for number in (1, 2))
    await decided(sessions, first, second)
    rows = await outcomes(api, "/registrations?agent=bot")
    assert [outcome for _, outcome, _ in rows] == ["Rejected", "Registered"]
    assert "another image" in str(rows[0][2])


async def test_an_agent_has_only_the_registrations_of_its_own_lifetime(api: Api) -> None:
    """A later agent with the same name has its own registrations."""
    first = await api.register("bot", "v1")
    await api.delete(f"/agents/{first['id']}")
    second = await api.register("bot", "v2")
    assert [row[0] for row in await outcomes(api, f"/agents/{first['id']}/registrations")] == ["v1"]
    assert [row[0] for row in await outcomes(api, f"/agents/{second['id']}/registrations")] == ["v2"]
    assert [row[0] for row in await outcomes(api, "/registrations?agent=bot")] == ["v2", "v1"]


async def test_invalid_parameters_are_named(api: Api) -> None:
    """They never cause a server error."""
    (await api.get("/registrations?agent=Not%20A%20Name")).problem(400, "invalid-request", "agent")
    (await api.get("/registrations?limit=0")).problem(400, "invalid-request", "limit")
    (await api.get(f"/agents/{a_body()['message_id']}/registrations")).problem(404, "agent-not-found")
    assert await outcomes(api, "/registrations?agent=nobody") == []


async def test_a_deployment_is_found_by_its_id_alone(api: Api) -> None:
    """Living or deleted, of any agent."""
    await api.register("bot", "v1")
    agent = await api.register("bot", "v2")
    assert (await api.get("/deployments/v1")).json["agent_id"] == agent["id"]
    await api.delete(f"/agents/{agent['id']}/deployments/v2")
    assert (await api.get("/deployments/v2")).json["expires_at"] is not None
    (await api.get("/deployments/v3")).problem(404, "deployment-not-found")
    (await api.get("/deployments/%20")).problem(404, "deployment-not-found")
