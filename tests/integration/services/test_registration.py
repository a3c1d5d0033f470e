from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from pydantic_core import to_json

from services.domain.announcement import Rejected
from services.registration.batch import read_message
from services.registration.parked import Envelope
from tests.integration.services.world import NAME, World
from tests.support.factories import a_body, a_build, ago, an_id, incoming, over_http


async def test_the_first_deployment_of_a_new_agent_serves_at_once(world: World) -> None:
    """G9: if nothing serves, the first Ready deployment goes to production under `first`."""
    assert await world.arrive(deployment_id="v1", docker_image="bot:1") == "Registered"
    assert await world.causes() == [("first", "v1")]
    assert await world.event_types() == [
        "agent.registered",
        "deployment.created",
        "deployment.ready",
        "deployment.promoted",
    ]
    assert (await world.agent()).status == "Ready"


async def test_everything_after_the_first_is_a_preview(world: World) -> None:
    """G9: deploying is not promoting."""
    for version in ("v1", "v2", "v3"):
        await world.arrive(deployment_id=version)
    assert await world.production() == "v1"
    assert [(await world.deployment(version)).status for version in ("v2", "v3")] == ["Ready", "Ready"]


async def test_a_message_that_comes_again_changes_nothing(world: World) -> None:
    """G3: same message, one effect: no further row, ledger entry or event, in the same batch or in a later one."""
    message = incoming(deployment_id="v1")
    assert await world.register(message, message) == ["Registered", "Duplicate"]
    before = await world.contents()
    assert await world.register(message, message) == ["Duplicate", "Duplicate"]
    assert await world.contents() == before


async def test_a_refused_or_stale_message_that_comes_again_is_a_duplicate_too(world: World) -> None:
    """G3: an outcome is final; later changes do not make the message apply."""
    await world.register(incoming(deployment_id="v1", docker_image="bot:1"))
    refused = incoming(deployment_id="v1", docker_image="bot:2")
    stale = incoming(deployment_id="v1", registered_at=ago(60))
    assert await world.register(refused, stale) == ["Rejected", "Stale"]
    before = await world.contents()
    assert await world.register(stale, refused) == ["Duplicate", "Duplicate"]
    assert await world.contents() == before


async def test_the_newest_announcement_s_address_stays_whatever_the_order(world: World) -> None:
    """G4: an older message is recorded as Stale and does not bring an older address back."""
    await world.arrive(deployment_id="v1", acp_url="http://new", registered_at=ago(10))
    before = await world.contents(without=frozenset({"registrations"}))
    assert await world.arrive(deployment_id="v1", acp_url="http://old", registered_at=ago(20)) == "Stale"
    assert await world.contents(without=frozenset({"registrations"})) == before
    assert await world.arrive(deployment_id="v1", acp_url="http://newer", registered_at=ago(5)) == "Registered"
    assert (await world.deployment("v1")).acp_url == "http://newer"


async def test_equal_times_are_ordered_by_message_id(world: World) -> None:
    """G4: of two announcements with equal times the same one wins, in either order."""
    moment = ago(10)
    for version, order in (("v1", (UUID(int=1), UUID(int=2))), ("v2", (UUID(int=4), UUID(int=3)))):
        for each in order:
            url = f"http://{each}"
            await world.arrive(deployment_id=version, registered_at=moment, message_id=str(each), acp_url=url)
        assert (await world.deployment(version)).acp_url == f"http://{max(order)}"


@pytest.mark.parametrize(("ahead", "clamped"), [(29, False), (31, True), (10**8, True)])
async def test_a_clock_more_than_30_s_ahead_is_replaced_by_the_database_s(
    world: World, ahead: float, *, clamped: bool
) -> None:
    """G4: a pod whose clock is far ahead cannot shut out its own later messages; 29 s are tolerated."""
    sent = datetime.now(UTC) + timedelta(seconds=ahead)
    await world.arrive(deployment_id="v1", registered_at=sent.isoformat())
    deployment = await world.deployment("v1")
    assert deployment.registered_at is not None
    assert (deployment.registered_at != sent) is clamped
    assert (deployment.registered_at < datetime.now(UTC) + timedelta(seconds=1)) is clamped
    assert (await world.arrive(deployment_id="v1", acp_url="http://later")) == ("Registered" if clamped else "Stale")


async def test_times_at_the_ends_of_the_calendar_are_stored(world: World) -> None:
    """G4: a clock at the year 1 or 9999 affects only the order of its own messages."""
    assert await world.arrive(deployment_id="v1", registered_at="0001-01-01T00:00:00Z") == "Registered"
    assert await world.arrive("other", registered_at="0001-01-01T00:00:00Z") == "Registered"
    assert await world.arrive(deployment_id="v1", registered_at="9999-12-31T23:59:59Z") == "Registered"
    assert await world.arrive("other", registered_at="9999-12-31T23:59:59Z", acp_url="http://new") == "Registered"


async def test_a_registration_over_http_is_dated_by_the_database(world: World) -> None:
    """G4: over HTTP the time and id in the body are ignored, so a registration is never stale by a pod's clock."""
    future = (datetime.now(UTC) + timedelta(seconds=20)).isoformat()
    assert await world.register(over_http(deployment_id="v1", registered_at=future)) == ["Registered"]
    message_id = str(an_id())
    again = over_http(deployment_id="v1", acp_url="http://new", registered_at=ago(60), message_id=message_id)
    assert await world.register(again) == ["Registered"]
    assert (await world.deployment("v1")).acp_url == "http://new"


async def test_the_address_is_stored_byte_for_byte(world: World) -> None:
    """The announced address is returned unchanged, with or without a trailing slash."""
    for version, address in (("v1", "http://H:8000"), ("v2", "https://h:8000//a/%7e;x/")):
        await world.arrive(deployment_id=version, acp_url=address)
        assert (await world.deployment(version)).acp_url == address


async def test_a_registration_without_image_takes_the_agent_s_then_keeps_its_own(world: World) -> None:
    """G6: the build's image is used for a pod that names none, and the first image stays."""
    await world.register(a_build(docker_image="bot:1"))
    await world.arrive(deployment_id="v1")
    await world.register(a_build(docker_image="bot:2"))
    await world.arrive(deployment_id="v1")
    await world.arrive(deployment_id="v2")
    assert [(await world.deployment(version)).docker_image for version in ("v1", "v2")] == ["bot:1", "bot:2"]
    await world.arrive("other", deployment_id="w1")
    await world.arrive("other", deployment_id="w1", docker_image="bot:9")
    assert (await world.deployment("w1")).docker_image == "bot:9"


async def test_metadata_of_a_newer_registration_is_merged(world: World) -> None:
    """G6: facts are merged; newer ones replace older ones."""
    await world.arrive(deployment_id="v1", registration_metadata={"git": {"commit": "a"}, "team": "mail"})
    await world.arrive(deployment_id="v1", registration_metadata={"git": {"commit": "b"}})
    expected = {"deployment_id": "v1", "git": {"commit": "b"}, "team": "mail"}
    assert (await world.deployment("v1")).registration_metadata == expected


async def test_a_preview_leaves_the_agent_s_own_fields_alone(world: World) -> None:
    """G8: only `event_seq` changes when a deployment registers; description, types, image and legacy address stay."""
    await world.arrive(acp_url="http://legacy", description="Mine.", acp_type="sync", docker_image="agent:1", team="a")
    before = await world.agent()
    await world.arrive(
        deployment_id="v1",
        acp_url="http://v1",
        description="Theirs.",
        acp_type="agentic",
        docker_image="bot:1",
        team="b",
    )
    after = await world.agent()
    changed = {
        column.key
        for column in type(before).__table__.columns
        if getattr(before, column.key) != getattr(after, column.key)
    }
    assert changed == {"event_seq"}


async def test_a_batch_is_decided_in_the_order_of_arrival(world: World) -> None:
    """Messages in one batch lead to the same state as one by one."""
    history = [
        ("bot-a", {"deployment_id": "a1", "registered_at": ago(50)}),
        ("bot-b", {"acp_url": "http://b", "registered_at": ago(50)}),
        ("bot-a", {"deployment_id": "a2", "registered_at": ago(40)}),
        ("bot-b", {"deployment_id": "b1", "registered_at": ago(40)}),
        ("bot-b", {"deployment_id": "a1", "registered_at": ago(30)}),
        ("bot-a", {"deployment_id": "a1", "acp_url": "http://a", "registered_at": ago(60)}),
        ("bot-c", {"deployment_id": "b1"}),
        ("bot-a", {"deployment_id": "a1", "acp_url": "http://a", "registered_at": ago(20)}),
    ]
    batch = [incoming(name, **fields) for name, fields in history]
    outcomes = ["Registered", "Registered", "Registered", "Registered", "Rejected", "Stale", "Rejected", "Registered"]
    assert await world.register(*batch) == outcomes
    assert await world.causes("bot-a") == [("first", "a1")]
    assert await world.causes("bot-b") == [("legacy", "legacy")]
    assert (await world.deployment("a1")).acp_url == "http://a"
    agents = await world.contents()
    assert len(agents["agents"]) == 2


async def test_the_inbox_has_the_outcome_of_each_message(world: World) -> None:
    """`registrations` holds each decided message once, in order, with its outcome and the reason of a refusal."""
    await world.register(
        incoming(deployment_id="v1", docker_image="bot:1"),
        incoming(deployment_id="v1", docker_image="bot:2"),
        incoming(deployment_id="v1", registered_at=ago(60)),
        read_message(Envelope(f"agent.{NAME}", to_json(a_body(acp_url="nowhere")))),
        incoming("mail-bot", key=f"agent.{NAME}"),
    )
    rows = await world.inbox()
    assert [(row.agent_name, row.deployment_id, row.outcome) for row in rows] == [
        (NAME, "v1", "Registered"),
        (NAME, "v1", "Rejected"),
        (NAME, "v1", "Stale"),
        (NAME, None, "Rejected"),
        (NAME, None, "Rejected"),
    ]
    reasons = [row.reason or "" for row in rows]
    assert [reason.split(":")[0] for reason in reasons][1::2] == [
        "The deployment already has another image, and images never change",
        "acp_url",
    ]


async def test_a_refused_first_message_creates_no_agent(world: World) -> None:
    """A refused first message leaves no agent and no event."""
    await world.arrive("owner", deployment_id="v1")
    (decided,) = await world.decide(incoming("thief", deployment_id="v1"))
    assert isinstance(decided.outcome, Rejected)
    contents = await world.contents()
    assert len(contents["agents"]) == 1
    assert not [event for event in contents["outbox"] if "thief" in event]


async def test_a_build_is_idempotent_by_name_and_serves_nothing(world: World) -> None:
    """`register-build` creates a BuildOnly agent once; its first promotion makes it Ready."""
    assert await world.register(a_build(description="Built."), a_build(description="Built.")) == ["Registered"] * 2
    agent = await world.agent()
    assert (agent.status, agent.generation, await world.event_types()) == ("BuildOnly", 0, ["agent.registered"])
    await world.arrive(deployment_id="v1")
    assert (await world.agent()).status == "Ready"
    assert (await world.agent()).id == agent.id


async def test_an_empty_batch_does_nothing(world: World) -> None:
    """No messages, no outcomes, no error."""
    assert await world.register() == []
