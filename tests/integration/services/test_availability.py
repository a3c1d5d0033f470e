import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from services.errors import AgentNotFound, Busy, LostRace, Unavailable
from services.promotion import promote as promotion
from services.settings import Settings
from services.storage.database import MAX_ATTEMPTS, Sessions, in_transaction, make_engine
from services.storage.store import lock_agent
from tests.integration.services.world import AMY, World
from tests.support.factories import an_id, incoming


@pytest_asyncio.fixture
async def impatient(settings: Settings, world: World) -> AsyncIterator[World]:
    """The same database for callers that wait a fifth of a second for a lock."""
    engine = make_engine(settings.model_copy(update={"lock_timeout": timedelta(seconds=0.2)}), application_name="tests")
    yield World(Sessions(engine))
    assert await world.agent()
    await engine.dispose()


async def test_who_waits_too_long_for_an_agent_is_told_to_come_again(world: World, impatient: World) -> None:
    """G10: `Busy` (503 with retry-after) after the lock timeout, for promotes and registrations; never 500."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"))
    agent_id = await world.agent_id()
    async with world.uncommitted() as session:
        await lock_agent(session, agent_id)
        for waiting in (
            impatient.promote("v2"),
            impatient.roll_back(),
            impatient.delete("v2"),
            impatient.delete_agent(),
            impatient.arrive(deployment_id="v3"),
        ):
            with pytest.raises(Busy) as refused:
                await waiting
            assert (refused.value.status, refused.value.retry_after_seconds) == (503, 1)
    await impatient.promote("v2")


async def test_reading_and_other_agents_do_not_wait_for_a_lock(world: World, impatient: World) -> None:
    """G1: the lock is the agent's alone, and readers need none."""
    await world.register(incoming(deployment_id="v1"), incoming("other", deployment_id="w1"))
    agent_id = await world.agent_id()
    async with world.uncommitted() as session:
        await lock_agent(session, agent_id)
        assert await impatient.production() == "v1"
        assert await impatient.arrive("other", deployment_id="w2") == "Registered"
        await impatient.promote("w2", "other")


@pytest.mark.parametrize(
    "elsewhere",
    [{"port": 1}, {"database": "no_such_database"}, {"username": "nobody"}, {"host": "no.such.host.invalid"}],
)
async def test_a_database_that_cannot_be_reached_is_unavailable(settings: Settings, elsewhere: dict[str, Any]) -> None:
    """G10: whatever keeps us out (nothing listens, no such database, role or host), it is 503 with retry-after."""
    url = make_url(settings.database_url.get_secret_value()).set(**elsewhere).render_as_string(hide_password=False)
    engine = make_engine(settings.model_copy(update={"database_url": SecretStr(url)}), application_name="tests")
    with pytest.raises(Unavailable) as refused:
        await in_transaction(Sessions(engine), lambda session: promotion.promote(session, an_id(), "v1", AMY))
    assert (refused.value.status, refused.value.retry_after_seconds) == (503, 2)
    await engine.dispose()


async def test_a_standby_is_unavailable_for_changes(world: World) -> None:
    """G10: during a fail-over the server reads but does not write; nobody is told 500 for that."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"))
    agent_id = await world.agent_id()

    async def on_a_standby(session: AsyncSession) -> None:
        await session.execute(text("SET TRANSACTION READ ONLY"))
        await promotion.promote(session, agent_id, "v2", AMY)

    with pytest.raises(Unavailable):
        await world.do(on_a_standby)


async def test_a_connection_that_breaks_midway_is_unavailable_and_leaves_nothing(world: World) -> None:
    """G10: the server ended the session, nothing was committed, and the next call works."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"))
    agent_id = await world.agent_id()
    before = await world.contents()

    async def cut_off(session: AsyncSession) -> None:
        await promotion.promote(session, agent_id, "v2", AMY)
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await world.do(lambda other: other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid}))
        await session.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        await world.do(cut_off)
    assert await world.contents() == before
    await world.promote("v2")


async def test_a_statement_without_end_is_unavailable(settings: Settings, world: World) -> None:
    """The server gives up a statement after the timeout; the caller may come again."""
    await world.arrive(deployment_id="v1")
    limited = settings.model_copy(update={"statement_timeout": timedelta(seconds=0.1)})
    engine = make_engine(limited, application_name="tests")
    with pytest.raises(Unavailable):
        await in_transaction(Sessions(engine), lambda session: session.execute(text("SELECT pg_sleep(10)")))
    await engine.dispose()


@pytest.mark.parametrize("state", ["XX000", "XX001", "58030"])
async def test_an_error_of_the_server_s_own_is_unavailable(world: World, state: str) -> None:
    """G10: a damaged page or a file that cannot be read is no defect of ours, and may pass: 503, never 500."""
    failing = text(f"DO $$ BEGIN RAISE EXCEPTION 'broken' USING ERRCODE = '{state}'; END $$")
    with pytest.raises(Unavailable) as refused:
        await world.do(lambda session: session.execute(failing))
    assert (refused.value.status, refused.value.retry_after_seconds) == (503, 2)


async def test_a_deadlock_is_run_again_and_seen_by_nobody(world: World) -> None:
    """40P01: PostgreSQL ends one of the two; its work runs again from the start, and both succeed."""
    await world.register(incoming("bot-a", deployment_id="a1"), incoming("bot-b", deployment_id="b1"))
    ids = [await world.agent_id("bot-a"), await world.agent_id("bot-b")]
    both_hold_one = asyncio.Barrier(2)
    runs = 0

    async def lock_both(session: AsyncSession, order: list[int]) -> None:
        nonlocal runs
        runs += 1
        await lock_agent(session, ids[order[0]])
        if runs <= 2:
            await both_hold_one.wait()
        await lock_agent(session, ids[order[1]])

    await asyncio.gather(
        world.do(lambda session: lock_both(session, [0, 1])), world.do(lambda session: lock_both(session, [1, 0]))
    )
    assert runs == 3


async def test_a_race_lost_for_ever_ends_as_busy(world: World) -> None:
    """The retry is bounded; what was written in the attempts is gone."""
    runs = 0

    async def lose(session: AsyncSession) -> None:
        nonlocal runs
        runs += 1
        await session.execute(text("INSERT INTO agents (name) VALUES ('ghost')"))
        raise LostRace

    with pytest.raises(Busy):
        await world.do(lose)
    assert runs == MAX_ATTEMPTS
    assert (await world.contents())["agents"] == []


async def test_a_refusal_is_not_run_again_and_a_defect_stays_one(world: World) -> None:
    """Domain errors pass through at once; a violation no caller can meet is not dressed up as one."""
    with pytest.raises(AgentNotFound):
        await world.do(lambda session: promotion.promote(session, an_id(), "v1", AMY))
    with pytest.raises(DBAPIError, match="agents_name_valid"):
        await world.do(lambda session: session.execute(text("INSERT INTO agents (name) VALUES ('No')")))
