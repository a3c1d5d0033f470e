"""Reads that callers share: never older than the call, one statement for many callers, and a lost connection."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import text

from services.agents.shared_reads import AgentReads
from services.errors import AgentNotFound, Unavailable
from services.settings import Settings
from tests.integration.services.world import NAME, World
from tests.support.factories import an_id

CALLS = text("""
SELECT sum(calls) FROM (SELECT count(*) AS calls FROM pg_stat_activity WHERE application_name = 'shared') AS sessions
""")
END = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shared'")


@pytest_asyncio.fixture
async def reads(settings: Settings) -> AsyncIterator[AgentReads]:
    """Reads on a connection of their own."""
    async with AgentReads(settings, application_name="shared") as reads:
        yield reads


async def test_a_read_sees_what_was_committed_before_it_began(world: World, reads: AgentReads) -> None:
    """Also while earlier reads are under way."""
    await world.arrive(deployment_id="v0")
    agent_id = await world.agent_id()
    for number in range(1, 20):
        earlier = [asyncio.create_task(reads.by_id(agent_id)) for _ in range(20)]
        await asyncio.sleep(0)
        await world.arrive(deployment_id=f"v{number}")
        await world.promote(f"v{number}")
        assert (await reads.by_id(agent_id)).agent.production_deployment_id == f"v{number}"
        assert (await reads.by_name(NAME)).agent.production_deployment_id == f"v{number}"
        await asyncio.gather(*earlier)


async def test_each_caller_gets_its_own(world: World, reads: AgentReads) -> None:
    """Or the error for what does not exist; on one connection."""
    for number in range(30):
        await world.arrive(f"bot-{number}", deployment_id=f"bot-{number}.v1")
    ids = {f"bot-{number}": await world.agent_id(f"bot-{number}") for number in range(30)}
    found = await asyncio.gather(
        *(reads.by_id(agent_id) for agent_id in ids.values()),
        *(reads.by_name(name) for name in ids),
        reads.by_id(an_id()),
        reads.by_name("nobody"),
        return_exceptions=True,
    )
    assert [type(each) for each in found[-2:]] == [AgentNotFound] * 2
    names = [each.agent.name for each in found[:-2] if not isinstance(each, BaseException)]
    assert names == [*ids, *ids]
    assert await world.do(lambda session: session.scalar(CALLS)) == 1


async def test_a_lost_connection(world: World, reads: AgentReads) -> None:
    """The next read opens another one."""
    await world.arrive(deployment_id="v1")
    for _ in range(3):
        assert (await reads.by_name(NAME)).agent.name == NAME
        await world.do(lambda session: session.execute(END))


async def test_a_database_that_cannot_be_reached(settings: Settings) -> None:
    """Each caller gets the error; none hangs."""
    away = settings.model_copy(
        update={"database_url": type(settings.database_url)("postgresql://nobody@127.0.0.1:1/x")}
    )
    async with AgentReads(away, application_name="shared") as reads:
        found = await asyncio.gather(*(reads.by_id(an_id()) for _ in range(5)), return_exceptions=True)
    with pytest.raises(Unavailable):
        raise found[0] if isinstance(found[0], BaseException) else AssertionError
    assert {type(each) for each in found} == {Unavailable}
