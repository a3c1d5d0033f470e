"""G67: a deployment that has stopped serving is drained once, when its last conversation has ended, and never early."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import text

from services.agents import commands
from services.agents.queries import get_deployment, list_deployments
from services.errors import ConversationsOpen
from services.retention.versions import StepLimits, delete_old_previews
from services.routing.conversations import ConversationTerms, digest_of, end_session, keep_session
from services.routing.draining import finish_draining
from services.routing.routes import RouteKey
from services.storage.pages import Page
from tests.integration.services.world import AMY, NAME, World, read_route
from tests.support.factories import incoming
from tests.support.shuffle import FRESH_SEED

V1, V2 = f"{NAME}.v1", f"{NAME}.v2"
TERMS = ConversationTerms()


async def begin(world: World, key: bytes, deployment_id: str = V1, *, preview: bool = False) -> None:
    """Open a conversation, as the gateway does."""
    agent_id = await world.agent_id()
    digest = digest_of(key, deployment_id if preview else None)
    await world.do(lambda session: keep_session(session, agent_id, digest, deployment_id, preview=preview))


async def end(world: World, key: bytes) -> None:
    """End a conversation, as the gateway does."""
    agent_id = await world.agent_id()
    await world.do(lambda session: end_session(session, agent_id, digest_of(key)))


async def drained(world: World, terms: ConversationTerms = TERMS) -> list[tuple[str, str, int]]:
    """One pass of the janitor: what it has drained, why, and how many conversations it has moved."""
    found = await world.do(lambda session: finish_draining(session, terms))
    return [(each.deployment_id, each.reason, each.moved) for each in found]


async def told(world: World) -> list[str]:
    """The deployments of all `drained` events."""
    return [event.subject for event in await world.events() if event.type == "podium.deployment.drained.v1"]


async def open_in_answers(world: World) -> tuple[int | None, int | None]:
    """The number of open conversations of version 1: read alone, and in a list."""
    agent_id = await world.agent_id()
    alone = await world.do(lambda session: get_deployment(session, agent_id, V1))
    listed = await world.do(lambda session: list_deployments(session, agent_id, Page()))
    [in_list] = [each for each in listed if each.deployment.id == V1]
    return (
        alone.draining.number if alone.draining is not None else None,
        in_list.draining.number if in_list.draining is not None else None,
    )


async def test_the_last_conversation_ends(world: World) -> None:
    """The count is shown meanwhile; the event comes with the last one, once."""
    await world.two_versions()
    for key in (b"one", b"two"):
        await begin(world, key)
    assert await open_in_answers(world) == (None, None)
    await world.promote(V2)
    assert await drained(world) == []
    assert await open_in_answers(world) == (2, 2)
    await end(world, b"one")
    assert await drained(world) == []
    assert await open_in_answers(world) == (1, 1)
    await end(world, b"two")
    assert await drained(world) == [(V1, "conversations-ended", 0)]
    assert await drained(world) == []
    assert await told(world) == [V1]
    assert await open_in_answers(world) == (None, None)
    assert (await world.deployment(V1)).drained_at is not None


async def test_without_conversations_it_is_drained_at_once(world: World) -> None:
    """So that a pipeline can always wait for it; each time it stops serving."""
    await world.two_versions()
    for number, (to, stopped) in enumerate([(V2, V1), (V1, V2), (V2, V1)], start=1):
        await world.promote(to)
        assert await drained(world) == [(stopped, "conversations-ended", 0)]
        assert len(await told(world)) == number


async def test_promoted_again_while_draining(world: World) -> None:
    """It serves: nothing is drained, until it stops serving once more."""
    await world.two_versions()
    await begin(world, b"one")
    await world.promote(V2)
    await world.roll_back()
    await end(world, b"one")
    assert await drained(world) == [(V2, "conversations-ended", 0)]
    deployment = await world.deployment(V1)
    assert (deployment.is_production, deployment.draining_since, deployment.drained_at) == (True, None, None)
    await world.promote(V2)
    assert await drained(world) == [(V1, "conversations-ended", 0)]
    assert await told(world) == [V2, V1]


async def test_idle_and_old_conversations_have_ended(world: World) -> None:
    """By the agent's own times, or else by the settings."""
    await world.two_versions()
    await begin(world, b"one")
    await world.promote(V2)
    aged = "UPDATE conversations SET {} = clock_timestamp() - interval '2 hours'"
    await world.do(lambda session: session.execute(text(aged.format("last_seen_at"))))
    assert await drained(world) == []
    await world.change(conversation_idle_seconds=3600.0)
    assert await drained(world) == [(V1, "conversations-ended", 0)]
    await begin(world, b"two", V2)
    await world.promote(V1)
    await world.change(conversation_idle_seconds="default", conversation_max_age_seconds=3600.0)
    assert await drained(world) == []
    await world.do(lambda session: session.execute(text(aged.format("started_at"))))
    assert await drained(world) == [(V2, "conversations-ended", 0)]


async def test_the_deadline(world: World) -> None:
    """Conversations that are open then move to what serves; the event says how many."""
    await world.two_versions()
    for key in (b"one", b"two"):
        await begin(world, key)
    await world.promote(V2)
    await world.change(drain_deadline_seconds=3600.0)
    assert await drained(world) == []
    earlier = text("UPDATE deployments SET draining_since = draining_since - interval '2 hours' WHERE id = :id")
    await world.do(lambda session: session.execute(earlier, {"id": V1}))
    assert await drained(world) == [(V1, "deadline", 2)]
    of_conversation = RouteKey(name=NAME, session=digest_of(b"one"))
    route = await world.do(lambda session: read_route(session, of_conversation))
    assert route.deployment_id == V2


async def test_a_conversation_that_begins_meanwhile(world: World) -> None:
    """Its transaction is under way when the janitor counts: the janitor waits for it, and finds it."""
    await world.two_versions()
    agent_id = await world.agent_id()
    await world.promote(V2)
    async with world.uncommitted() as session:
        await keep_session(session, agent_id, digest_of(b"late"), V1)
        checking = asyncio.create_task(drained(world))
        await world.until_blocked()
    assert await checking == []
    await end(world, b"late")
    assert await drained(world) == [(V1, "conversations-ended", 0)]


async def test_none_begins_with_a_drained_deployment(world: World) -> None:
    """Also not if it was routed there before; on its own route it may."""
    await world.two_versions()
    agent_id = await world.agent_id()
    await world.promote(V2)
    async with world.uncommitted() as session:
        await finish_draining(session)
        late = asyncio.create_task(world.do(lambda other: keep_session(other, agent_id, digest_of(b"late"), V1)))
        await world.until_blocked()
    assert await late is False
    assert await world.do(lambda other: other.scalar(text("SELECT count(*) FROM conversations"))) == 0
    await begin(world, b"own", V1, preview=True)
    assert await world.do(lambda other: other.scalar(text("SELECT count(*) FROM conversations"))) == 1


async def test_two_janitors(world: World) -> None:
    """Drained once."""
    await world.two_versions()
    await world.promote(V2)
    found = await asyncio.gather(*(drained(world) for _ in range(5)))
    assert sum(map(len, found)) == 1
    assert await told(world) == [V1]


async def test_an_agent_that_somebody_has_locked(world: World) -> None:
    """Is left for the next pass, and delays nothing."""
    await world.two_versions()
    await world.two_versions("other")
    await world.promote(V2)
    await world.promote("other.v2", "other")
    async with world.uncommitted() as session:
        await session.execute(text("SELECT FROM agents WHERE name = :name FOR UPDATE"), {"name": NAME})
        assert await drained(world) == [("other.v1", "conversations-ended", 0)]
    assert await drained(world) == [(V1, "conversations-ended", 0)]


async def test_deletions(world: World) -> None:
    """A draining deployment is deleted by force only, and is not drained after that, nor is a deleted agent's."""
    await world.two_versions()
    agent_id = await world.agent_id()
    await begin(world, b"one")
    await world.promote(V2)
    with pytest.raises(ConversationsOpen, match="1 conversations are open"):
        await world.delete(V1)
    old = StepLimits(before=datetime.now(UTC) + timedelta(days=1), keep=0, rows=10)
    await world.do(lambda session: delete_old_previews(session, old))
    assert (await world.deployment(V1)).expires_at is None
    await world.do(lambda session: commands.delete_deployment(session, agent_id, V1, AMY, force=True))
    assert await drained(world) == []
    await world.register(incoming(NAME, deployment_id="v3"))
    await world.promote("v3")
    await world.delete_agent()
    assert await drained(world) == []
    assert await told(world) == []


async def test_random_histories(world: World) -> None:
    """Promotes, rollbacks, conversations and passes at random: one event for each time a deployment stopped serving."""
    seed = FRESH_SEED
    rng = random.Random(seed)  # noqa: S311 - a reproducible order, not a secret
    await world.two_versions()
    await world.register(incoming(NAME, deployment_id=f"{NAME}.v3"))
    versions = [V1, V2, f"{NAME}.v3"]
    serves, draining, still_open = V1, set[str](), dict[bytes, str]()
    expected: list[str] = []
    for _ in range(120):
        step = rng.choice(["promote", "begin", "end", "pass", "pass"])
        if step == "promote":
            to = rng.choice(versions)
            if to != serves:
                draining = (draining | {serves}) - {to}
                serves = to
            await world.promote(to)
        elif step == "begin":
            key = uuid4().bytes.replace(b"\0", b"x")
            await begin(world, key, serves)
            still_open[key] = serves
        elif step == "end" and still_open:
            key = rng.choice(sorted(still_open))
            del still_open[key]
            await end(world, key)
        elif step == "pass":
            free = draining - set(still_open.values())
            assert {each[0] for each in await drained(world)} == free, f"seed {seed}"
            expected += sorted(free)
            draining -= free
    assert sorted(await told(world)) == sorted(expected), f"seed {seed}"
