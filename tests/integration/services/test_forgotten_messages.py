"""Retention of the inbox: a message that is delivered again after its row was removed still changes nothing."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.registration.batch import Incoming
from services.registration.inbox import remove_decided
from tests.integration.services.world import INBOX, NAME, World
from tests.support.factories import a_build, ago, incoming

_EARLIER = [
    text(f"UPDATE {table} SET " + ", ".join(f"{column} = {column} - CAST(:by AS interval)" for column in columns))
    for table, columns in {
        "registrations": ("received_at", "registered_at", "dated_at"),
        "deployments": ("registered_at",),
        "agents": ("registered_at",),
    }.items()
]


async def remove_old_rows(world: World) -> int:
    """Remove old rows from the inbox; returns how many were removed."""
    now = datetime.now(UTC) + timedelta(seconds=5)
    return await world.do(lambda session: remove_decided(session, now, 1000))


async def shift_times(world: World, seconds: float) -> None:
    """Move all times that come from announcements this many seconds into the past."""

    async def shift(session: AsyncSession) -> None:
        for statement in _EARLIER:
            await session.execute(statement, {"by": timedelta(seconds=seconds)})

    await world.do(shift)


async def outcomes_without_effect(world: World, *again: Incoming) -> list[str]:
    """The outcomes of messages that are delivered again, none of which changed anything."""
    before = await world.contents(without=INBOX)
    outcomes = [outcome for message in again for outcome in await world.register(message)]
    assert await world.contents(without=INBOX) == before
    return outcomes


async def test_a_removed_message_is_stale(world: World) -> None:
    """Whatever its outcome was, and with or without newer messages: its time and id still show how old it is."""
    sent = [
        incoming(acp_url="http://legacy", registered_at=ago(50)),
        incoming(deployment_id="v1", registered_at=ago(40)),
        incoming(deployment_id="v1", registered_at=ago(60)),
        incoming(deployment_id="v2", registered_at=ago(30)),
        incoming(acp_url="http://legacy", registered_at=ago(20)),
        incoming(deployment_id="v1", docker_image="another", registered_at=ago(10)),
        incoming(deployment_id="v1", acp_url="http://moved", registered_at=ago(5)),
    ]
    await world.register(a_build(), *sent)
    await world.promote("v1")
    assert await remove_old_rows(world) == len(sent) + 1
    assert await world.inbox() == []
    outcomes = await outcomes_without_effect(world, *sent)
    assert outcomes == ["Stale"] * len(sent)


async def test_a_removed_refusal_is_refused_again(world: World) -> None:
    """For the same reason, and without another effect."""
    await world.register(incoming(deployment_id="v1", docker_image="bot:1"), incoming("other", deployment_id="o1"))
    refused = [
        incoming(deployment_id="v1", docker_image="bot:2"),
        incoming(deployment_id="o1"),
        incoming(agent_id="00000000-0000-4000-8000-000000000000"),
        incoming(key="agent.somebody-else"),
    ]
    assert set(await world.register(*refused)) == {"Rejected"}
    assert await remove_old_rows(world) == len(refused) + 2
    assert set(await outcomes_without_effect(world, *refused)) == {"Rejected"}


async def test_a_removed_message_of_a_deleted_agent_creates_no_agent(world: World) -> None:
    """It is older than the deletion of its name."""
    sent = [incoming(registered_at=ago(9)), incoming(deployment_id="v1", registered_at=ago(8))]
    await world.register(*sent)
    await world.delete_agent()
    assert await remove_old_rows(world) == len(sent)
    assert await outcomes_without_effect(world, *sent) == ["Stale", "Stale"]


async def then_nothing(world: World) -> None:
    """No further message arrives."""
    _ = world


async def then_a_newer_version(world: World) -> None:
    """The clock of the next pod is right; whether it wins depends on how wrong the other one is."""
    await world.arrive(deployment_id="v1", acp_url="http://newer")
    await world.arrive(acp_url="http://newer-legacy")


async def then_its_agent_is_deleted(world: World) -> None:
    """Before the time that the pod's clock showed."""
    await world.delete_agent()


async def then_its_version_is_deleted(world: World) -> None:
    """Another version serves."""
    await world.arrive(deployment_id="v2")
    await world.promote("v2")
    await world.delete("v1")


@pytest.mark.parametrize("seconds_ahead", [20, 3600])
@pytest.mark.parametrize(
    "then", [then_nothing, then_a_newer_version, then_its_agent_is_deleted, then_its_version_is_deleted]
)
async def test_a_message_from_a_clock_ahead_is_not_removed_too_early(
    world: World, seconds_ahead: float, then: Callable[[World], Awaitable[None]]
) -> None:
    """It would count as newer than when it was decided, so its row stays until the message can no longer be applied."""
    ahead = [
        incoming(acp_url="http://legacy", registered_at=ago(-seconds_ahead)),
        incoming(deployment_id="v1", acp_url="http://ahead", registered_at=ago(-seconds_ahead)),
    ]
    await world.register(*ahead)
    await then(world)
    await remove_old_rows(world)
    await outcomes_without_effect(world, *ahead)


async def test_a_message_from_a_clock_ahead_is_removed_in_the_end(world: World) -> None:
    """Once an announcement later than its own time was applied, or its version was deleted."""
    later = ago(-3600)
    await world.arrive(registered_at=later)
    await world.arrive(deployment_id="v1", registered_at=later)
    await world.arrive(deployment_id="v2", registered_at=later)
    await world.delete("v2")
    assert await remove_old_rows(world) == 1
    await shift_times(world, 3700)
    await world.arrive(deployment_id="v1")
    await world.arrive(acp_url="http://newer")
    assert await remove_old_rows(world) == 4
    assert (await world.agent(NAME)).legacy_acp_url == "http://newer"
