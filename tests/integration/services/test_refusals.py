import pytest
from pydantic_core import to_json

from services.errors import Unprocessable
from services.registration.batch import Incoming, Unreadable, read_message
from services.registration.parked import Envelope
from tests.integration.services.world import INBOX, NAME, World
from tests.support.factories import a_body, ago, an_id, incoming, over_http


async def refused(world: World, message: Incoming) -> str:
    """The reason for which a message was parked, having changed nothing else; `parked` holds it whole."""
    before = await world.contents(without=INBOX)
    assert await world.register(message) == ["Rejected"]
    assert await world.contents(without=INBOX) == before
    newest = (await world.parked())[-1]
    assert message.envelope is not None
    assert (newest.body, newest.routing_key) == (message.envelope.body, message.envelope.routing_key)
    assert newest.error
    return newest.reason


async def two_agents(world: World) -> None:
    """`support-bot` with v1 in production and v2 as a preview; `mail-bot` with its own version."""
    await world.register(
        incoming(deployment_id="v1", docker_image="bot:1"),
        incoming(deployment_id="v2"),
        incoming("mail-bot", deployment_id="mail-1"),
    )


@pytest.mark.parametrize("name", ["mail-bot", "new-bot"])
@pytest.mark.parametrize("deployment_id", ["v1", "v2"])
async def test_a_pod_cannot_register_another_agent_s_deployment(world: World, name: str, deployment_id: str) -> None:
    """G5: a pod of agent B that names agent A's deployment, in production or not, changes nothing and is parked."""
    await two_agents(world)
    message = incoming(name, deployment_id=deployment_id, acp_url="http://thief", docker_image="bot:1")
    assert await refused(world, message) == "deployment-of-another-agent"


@pytest.mark.parametrize("fields", [{}, {"deployment_id": "v1"}, {"deployment_id": "v3"}])
async def test_a_wrong_agent_id_is_refused(world: World, fields: dict[str, str]) -> None:
    """G5: a wrong `agent_id` changes nothing: another agent's id, an unknown one, or no valid id."""
    await two_agents(world)
    for wrong in (str(await world.agent_id("mail-bot")), str(an_id()), "nonsense", ""):
        message = incoming(agent_id=wrong, acp_url="http://thief", **fields)
        assert await refused(world, message) == "agent-id-mismatch"
    right = incoming(agent_id=str(await world.agent_id()), **fields)
    assert await world.register(right) == ["Registered"]


async def test_an_agent_id_for_a_name_that_is_free_is_refused(world: World) -> None:
    """G5: a pod that sends the id of an agent cannot create another agent under a free name."""
    assert await refused(world, incoming("new-bot", agent_id=str(an_id()))) == "agent-id-mismatch"
    assert (await world.contents())["agents"] == []


async def test_an_image_cannot_change(world: World) -> None:
    """G6: another image is a conflict, even in the newest message; no image, or the same one, is not."""
    await two_agents(world)
    message = incoming(deployment_id="v1", docker_image="bot:2", acp_url="http://new")
    assert await refused(world, message) == "image-conflict"
    assert await world.arrive(deployment_id="v1", docker_image="bot:1") == "Registered"
    assert await world.arrive(deployment_id="v1") == "Registered"


async def test_a_deleted_deployment_stays_deleted(world: World) -> None:
    """G7: no registration revives a deleted deployment, however new it is."""
    await two_agents(world)
    await world.delete("v2")
    assert await refused(world, incoming(deployment_id="v2", acp_url="http://new")) == "deployment-deleted"


async def test_a_deleted_agent_s_deployment_is_gone_for_its_name_and_taken_for_others(world: World) -> None:
    """G7 and G16: an agent of the same name finds the old id deleted (410), any other agent finds it taken (409)."""
    await two_agents(world)
    await world.delete_agent()
    assert await refused(world, incoming(deployment_id="v1")) == "deployment-deleted"
    assert await refused(world, incoming("mail-bot", deployment_id="v1")) == "deployment-of-another-agent"
    assert await refused(world, incoming("new-bot", deployment_id="v1")) == "deployment-of-another-agent"
    assert await world.arrive(deployment_id="v3") == "Registered"
    assert await refused(world, incoming(deployment_id="v1")) == "deployment-deleted"


async def test_key_and_body_must_name_the_same_agent(world: World) -> None:
    """G5: a message under another agent's key is parked, and neither agent changes."""
    await two_agents(world)
    assert await refused(world, incoming("mail-bot", key=f"agent.{NAME}", acp_url="http://thief")) == "key-mismatch"
    assert await refused(world, incoming(key="agent.not.a.name", acp_url="http://thief")) == "key-mismatch"


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"{}", b"[" * 1000, to_json(a_body()) * 2, b"x" * 5 * 1024 * 1024])
async def test_a_message_that_is_not_a_registration_is_parked_whole(world: World, body: bytes) -> None:
    """Nothing is lost: each message is kept byte for byte with the reason, and the rest of its batch is decided."""
    poison = read_message(Envelope(f"agent.{NAME}", body, {"x-nul": "\x00", "n": float("inf"), "raw": b"\xff"}))
    assert await world.register(incoming(), poison, incoming("other")) == ["Registered", "Rejected", "Registered"]
    (parked,) = await world.parked()
    assert parked.body == body
    assert parked.reason in {"malformed", "message-too-large"}


async def test_repeated_refusals_of_one_deployment_share_a_row_and_count_up(world: World) -> None:
    """The refusals of a pod that restarts in a loop are one row with its attempts, the newest message and its error."""
    await two_agents(world)
    first, second, third = (incoming("mail-bot", deployment_id="v1", acp_url=f"http://{n}") for n in "abc")
    await world.register(first)
    await world.register(second, third)
    (row,) = await world.parked()
    assert (row.attempts, row.reason) == (3, "deployment-of-another-agent")
    assert third.envelope is not None
    assert row.body == third.envelope.body
    await world.register(incoming(deployment_id="v1", docker_image="bot:2"))
    assert [each.attempts for each in await world.parked()] == [3, 1]


async def test_a_message_delivered_again_does_not_count_as_another_attempt(world: World) -> None:
    """A redelivery by the broker is not a new attempt of the pod: counts, rows and times of parked messages stay."""
    await two_agents(world)
    wrong = incoming("mail-bot", deployment_id="v1")
    nameless = read_message(Envelope(f"agent.{NAME}", b"{}"))
    with_id = read_message(Envelope(f"agent.{NAME}", to_json(a_body(acp_url="nowhere"))))
    lost = incoming(key="nobody")
    poison = (wrong, nameless, with_id, lost)
    await world.register(*poison, *poison)
    before = await world.contents()
    assert [each.attempts for each in await world.parked()] == [1, 1, 1, 1]
    await world.register(*poison)
    for each in poison:
        await world.register(each)
    assert await world.contents() == before


async def test_a_refusal_over_http_is_answered_and_not_parked(world: World) -> None:
    """The caller has the error, so there is nothing to retry later. The inbox still lists it."""
    await two_agents(world)
    assert await world.register(over_http("mail-bot", deployment_id="v1")) == ["Rejected"]
    assert await world.parked() == []
    assert (await world.inbox())[-1].outcome == "Rejected"


async def test_a_message_the_database_refused_is_known_afterwards(world: World) -> None:
    """A message that was isolated and parked after a database error stays a Duplicate when it is delivered again."""
    message = incoming(deployment_id="v1")
    assert message.envelope is not None
    poison = Incoming(Unreadable(Unprocessable(), message.content.message_id, NAME), message.envelope)
    await world.register(poison)
    assert await world.register(message) == ["Duplicate"]


async def test_a_message_older_than_the_deletion_of_its_name_is_stale_not_refused(world: World) -> None:
    """G16: a message published before the deletion of its agent is not refused, and creates no agent."""
    await two_agents(world)
    late = [incoming(deployment_id="v1", registered_at=ago(5)), incoming(registered_at=ago(5), agent_id="wrong")]
    await world.delete_agent()
    before = await world.contents(without=INBOX)
    assert await world.register(*late, incoming(deployment_id="v9", registered_at=ago(5))) == ["Stale"] * 3
    assert await world.contents(without=INBOX) == before
    assert await world.parked() == []
