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
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from services.errors import AgentNotFound, Busy, LostRace, Unavailable
from services.promotion import promote as promotion
from services.settings import Settings
from services.storage.database import MAX_ATTEMPTS, Sessions, in_transaction, make_engine
from services.storage.store import lock_agent
from tests.integration.services.world import AMY, World
from tests.support.factories import an_id, incoming


@pytest_asyncio.fixture
async def short_lock_timeout(settings: Settings, world: World) -> AsyncIterator[World]:
    """The same database with a lock timeout of 0.2 s."""
    engine = make_engine(settings.model_copy(update={"lock_timeout": timedelta(seconds=0.2)}), application_name="tests")
    yield World(Sessions(engine))
    assert await world.agent()
    await engine.dispose()


async def test_a_lock_timeout_is_busy(world: World, short_lock_timeout: World) -> None:
    """G10: `Busy` (503 with retry-after) after the lock timeout, for promotes and registrations; never 500."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"))
    agent_id = await world.agent_id()
    async with world.uncommitted() as session:
        await lock_agent(session, agent_id)
        for waiting in (
            short_lock_timeout.promote("v2"),
            short_lock_timeout.roll_back(),
            short_lock_timeout.delete("v2"),
            short_lock_timeout.delete_agent(),
            short_lock_timeout.arrive(deployment_id="v3"),
        ):
            with pytest.raises(Busy) as refused:
                await waiting
            assert (refused.value.status, refused.value.retry_after_seconds) == (503, 1)
    await short_lock_timeout.promote("v2")


async def test_reading_and_other_agents_do_not_wait_for_a_lock(world: World, short_lock_timeout: World) -> None:
    """G1: the lock covers one agent only, and reads need no lock."""
    await world.register(incoming(deployment_id="v1"), incoming("other", deployment_id="w1"))
    agent_id = await world.agent_id()
    async with world.uncommitted() as session:
        await lock_agent(session, agent_id)
        assert await short_lock_timeout.production() == "v1"
        assert await short_lock_timeout.arrive("other", deployment_id="w2") == "Registered"
        await short_lock_timeout.promote("w2", "other")


@pytest.mark.parametrize(
    "elsewhere",
    [{"port": 1}, {"database": "no_such_database"}, {"username": "nobody"}, {"host": "no.such.host.invalid"}],
)
async def test_a_database_that_cannot_be_reached_is_unavailable(settings: Settings, elsewhere: dict[str, Any]) -> None:
    """G10: 503 with retry-after, whatever the cause: nothing listens, or the database, role or host does not exist."""
    url = make_url(settings.database_url.get_secret_value()).set(**elsewhere).render_as_string(hide_password=False)
    engine = make_engine(settings.model_copy(update={"database_url": SecretStr(url)}), application_name="tests")
    with pytest.raises(Unavailable) as refused:
        await in_transaction(Sessions(engine), lambda session: promotion.promote(session, an_id(), "v1", AMY))
    assert (refused.value.status, refused.value.retry_after_seconds) == (503, 2)
    await engine.dispose()


async def test_a_standby_is_unavailable_for_changes(world: World) -> None:
    """G10: during a failover the server is read-only; callers get 503, not 500."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"))
    agent_id = await world.agent_id()

    async def on_a_standby(session: AsyncSession) -> None:
        await session.execute(text("SET TRANSACTION READ ONLY"))
        await promotion.promote(session, agent_id, "v2", AMY)

    with pytest.raises(Unavailable):
        await world.do(on_a_standby)


async def test_a_connection_that_breaks_midway_is_unavailable_and_leaves_nothing(world: World) -> None:
    """G10: the server ended the session: nothing was committed, and the next call works."""
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


async def test_a_statement_timeout_is_unavailable(settings: Settings, world: World) -> None:
    """The server cancels a statement after the timeout; the caller gets 503 and can try again."""
    await world.arrive(deployment_id="v1")
    limited = settings.model_copy(update={"statement_timeout": timedelta(seconds=0.1)})
    engine = make_engine(limited, application_name="tests")
    with pytest.raises(Unavailable):
        await in_transaction(Sessions(engine), lambda session: session.execute(text("SELECT pg_sleep(10)")))
    await engine.dispose()


@pytest.mark.parametrize("state", ["XX000", "XX001", "58030"])
async def test_an_internal_error_of_the_server_is_unavailable(world: World, state: str) -> None:
    """G10: a damaged page or an unreadable file is not a defect of Podium, and may pass: 503, never 500."""
    failing = text(f"DO $$ BEGIN RAISE EXCEPTION 'broken' USING ERRCODE = '{state}'; END $$")
    with pytest.raises(Unavailable) as refused:
        await world.do(lambda session: session.execute(failing))
    assert (refused.value.status, refused.value.retry_after_seconds) == (503, 2)


async def test_a_deadlock_is_retried(world: World) -> None:
    """40P01: PostgreSQL cancels one of the two; its work runs again from the start, and both succeed."""
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


async def test_too_many_lost_races_are_busy(world: World) -> None:
    """The number of retries is limited; what the attempts wrote is rolled back."""
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


async def test_refusals_and_defects_are_not_retried(world: World) -> None:
    """Domain errors are raised at once; a violation that no valid request can cause is not translated."""
    with pytest.raises(AgentNotFound):
        await world.do(lambda session: promotion.promote(session, an_id(), "v1", AMY))
    with pytest.raises(DBAPIError, match="agents_name_valid"):
        await world.do(lambda session: session.execute(text("INSERT INTO agents (name) VALUES ('No')")))


async def test_errors_of_the_database_do_not_tell_parameters(engine: AsyncEngine) -> None:
    """They are logged, and a parameter can be a secret."""
    with pytest.raises(DBAPIError) as failed:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1 / 0, CAST(:secret AS text)"), {"secret": "the-secret"})
    assert "division by zero" in str(failed.value)
    assert "the-secret" not in str(failed.value)
