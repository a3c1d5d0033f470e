"""The inbox knows what was decided for a while only: a message that comes again after that still changes nothing."""

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


async def forget(world: World) -> int:
    """How many messages the inbox forgot, of all that it had."""
    now = datetime.now(UTC) + timedelta(seconds=5)
    return await world.do(lambda session: remove_decided(session, now, 1000))


async def time_passes(world: World, seconds: float) -> None:
    """Have everything that pods said be said so many seconds earlier."""

    async def shift(session: AsyncSession) -> None:
        for statement in _EARLIER:
            await session.execute(statement, {"by": timedelta(seconds=seconds)})

    await world.do(shift)


async def unchanged_by(world: World, *again: Incoming) -> list[str]:
    """The outcomes of messages that come again, none of which changed anything."""
    before = await world.contents(without=INBOX)
    outcomes = [outcome for message in again for outcome in await world.register(message)]
    assert await world.contents(without=INBOX) == before
    return outcomes


async def test_a_message_that_was_forgotten_is_stale(world: World) -> None:
    """Whatever became of it, and whether or not something newer came since: its time and id still say how old it is."""
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
    assert await forget(world) == len(sent) + 1
    assert await world.inbox() == []
    outcomes = await unchanged_by(world, *sent)
    assert outcomes == ["Stale"] * len(sent)


async def test_a_refusal_that_was_forgotten_is_refused_again(world: World) -> None:
    """For the same reason; no other effect."""
    await world.register(incoming(deployment_id="v1", docker_image="bot:1"), incoming("other", deployment_id="o1"))
    refused = [
        incoming(deployment_id="v1", docker_image="bot:2"),
        incoming(deployment_id="o1"),
        incoming(agent_id="00000000-0000-4000-8000-000000000000"),
        incoming(key="agent.somebody-else"),
    ]
    assert set(await world.register(*refused)) == {"Rejected"}
    assert await forget(world) == len(refused) + 2
    assert set(await unchanged_by(world, *refused)) == {"Rejected"}


async def test_one_forgotten_message_of_a_deleted_agent_makes_no_new_one(world: World) -> None:
    """It is older than the deletion of its name."""
    sent = [incoming(registered_at=ago(9)), incoming(deployment_id="v1", registered_at=ago(8))]
    await world.register(*sent)
    await world.delete_agent()
    assert await forget(world) == len(sent)
    assert await unchanged_by(world, *sent) == ["Stale", "Stale"]


async def then_nothing(world: World) -> None:
    """Nothing came since."""
    _ = world


async def then_a_newer_version(world: World) -> None:
    """The clock of the pod's successor is right; whether it wins depends on how wrong the other one is."""
    await world.arrive(deployment_id="v1", acp_url="http://newer")
    await world.arrive(acp_url="http://newer-legacy")


async def then_its_agent_is_deleted(world: World) -> None:
    """Before the time that the pod's clock showed."""
    await world.delete_agent()


async def then_its_version_is_deleted(world: World) -> None:
    """Another one serves."""
    await world.arrive(deployment_id="v2")
    await world.promote("v2")
    await world.delete("v1")


@pytest.mark.parametrize("seconds_ahead", [20, 3600])
@pytest.mark.parametrize(
    "then", [then_nothing, then_a_newer_version, then_its_agent_is_deleted, then_its_version_is_deleted]
)
async def test_what_a_clock_that_runs_ahead_dated_is_not_forgotten_too_early(
    world: World, seconds_ahead: float, then: Callable[[World], Awaitable[None]]
) -> None:
    """It would count as newer than when it was decided: it stays known until what it says cannot be applied again."""
    ahead = [
        incoming(acp_url="http://legacy", registered_at=ago(-seconds_ahead)),
        incoming(deployment_id="v1", acp_url="http://ahead", registered_at=ago(-seconds_ahead)),
    ]
    await world.register(*ahead)
    await then(world)
    await forget(world)
    await unchanged_by(world, *ahead)


async def test_what_a_clock_that_runs_ahead_dated_is_forgotten_in_the_end(world: World) -> None:
    """Once an announcement later than the time that it names was applied, or its version was deleted."""
    later = ago(-3600)
    await world.arrive(registered_at=later)
    await world.arrive(deployment_id="v1", registered_at=later)
    await world.arrive(deployment_id="v2", registered_at=later)
    await world.delete("v2")
    assert await forget(world) == 1
    await time_passes(world, 3700)
    await world.arrive(deployment_id="v1")
    await world.arrive(acp_url="http://newer")
    assert await forget(world) == 4
    assert (await world.agent(NAME)).legacy_acp_url == "http://newer"
