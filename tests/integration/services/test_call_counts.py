"""Counts of calls: what is stored, by several processes, while the database is away, and for how long."""

from datetime import timedelta
from time import time
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from pydantic_core import from_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.calls import counts
from services.calls.counts import CallCounts, open_call_counts
from services.calls.recent import NO_CALLS, CallHour, Count, recent_calls
from services.errors import Unavailable
from services.retention.tasks import RetentionTask, sweep
from services.settings import Settings
from services.storage.database import Sessions, make_engine
from tests.integration.services.world import World
from tests.support.waiting import eventually

KEPT = timedelta(hours=2)
AGENT, OTHER = uuid4(), uuid4()


def called(process: CallCounts, agent_id: UUID = AGENT, version: str | None = "v1", **how: object) -> None:
    """Count one call, answered in a second unless said otherwise."""
    process.record(agent_id, version, **{"agent_failed": False, "gateway_failed": False, "answer_seconds": 1.0, **how})  # type: ignore[arg-type]


async def hour_of(world: World, agent_id: UUID = AGENT) -> CallHour:
    """The last hour of an agent."""
    return (await world.do(lambda session: recent_calls(session, [agent_id]))).of_agent(agent_id)


async def test_processes_count_together(world: World) -> None:
    """G104: each call of each process is counted once, however often a process writes; per version and together."""
    processes = [CallCounts(KEPT) for _ in range(3)]
    for number, process in enumerate(processes):
        for _ in range(10):
            called(process, answer_seconds=float(number))
        called(process, version=None, agent_failed=True)
        called(process, OTHER, gateway_failed=True, answer_seconds=None)
        await process.store(world.sessions)
        called(process)
        await process.store(world.sessions)
        await process.store(world.sessions)
    recent = await world.do(lambda session: recent_calls(session, [AGENT, OTHER]))
    assert recent.is_complete
    assert recent.of_version(AGENT, "v1").total == Count(33, answered=33, answer_seconds=33.0, longest_seconds=2.0)
    assert recent.of_version(AGENT, "").total.agent_failures == 3
    assert (recent.of_agent(AGENT).total.calls, recent.of_agent(AGENT).total.failures) == (36, 3)
    assert recent.of_agent(OTHER).total == Count(3, gateway_failures=3)
    assert recent.of_agent(uuid4()).total == NO_CALLS


async def test_a_write_that_may_have_been_committed_can_be_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G104: if the answer to a commit is lost, the same calls are written again and counted once."""
    process = CallCounts(KEPT)
    called(process)
    stored = counts._stored

    async def lost(*arguments: object) -> float:
        async with world.uncommitted() as session:
            await stored(session, *arguments[1:])  # type: ignore[arg-type]
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(counts, "_stored", lost)
        with pytest.raises(Unavailable):
            await process.store(world.sessions)
    assert (await hour_of(world)).total.calls == 1
    called(process)
    await process.store(world.sessions)
    assert (await hour_of(world)).total.calls == 2


async def test_counting_goes_on_while_the_database_is_away(
    world: World, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G104: what could not be written is written later; how much that can be is bounded, and the rest is said."""
    monkeypatch.setattr(counts, "MOST_BUCKETS", 3)
    away = settings.model_copy(update={"database_url": SecretStr("postgresql://nobody@127.0.0.1:1/none")})
    engine = make_engine(away, application_name="tests")
    process = CallCounts(KEPT)
    for agent_id in (AGENT, OTHER, *(uuid4() for _ in range(10))):
        called(process, agent_id)
        with pytest.raises(Unavailable):
            await process.store(Sessions(engine, timeout=timedelta(seconds=5)))
    await engine.dispose()
    assert len(process._buckets) <= 4
    await process.store(world.sessions)
    recent = await world.do(lambda session: recent_calls(session, [AGENT, OTHER]))
    assert (recent.of_agent(AGENT).total.calls, recent.of_agent(OTHER).total.calls) == (1, 1)
    assert not recent.is_complete
    async with world.sessions() as session:
        assert await session.scalar(text("SELECT sum(calls) FROM call_counts")) == 12


async def test_many_counts_are_stored_in_slices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G104: a statement has a bounded number of rows; what one has stored is not written again when a later one fails.

    The time limit of a stop is that of all statements together.
    """
    monkeypatch.setattr(counts, "MOST_ROWS", 2)
    process, stored = CallCounts(KEPT), counts._stored
    for _ in range(5):
        called(process, uuid4())
    writes: list[int] = []

    async def second_fails(session: AsyncSession, process_id: UUID, rows: str) -> float:
        writes.append(len(from_json(rows)))
        if len(writes) == 2:
            raise ConnectionError
        return await stored(session, process_id, rows)

    monkeypatch.setattr(counts, "_stored", second_fails)
    with pytest.raises(Unavailable):
        await process.store(world.sessions)
    assert len(process._changed) == 3
    await process.store(world.sessions)
    assert writes == [2, 2, 2, 1]
    async with world.sessions() as session:
        assert await session.scalar(text("SELECT sum(calls) FROM call_counts")) == 5
    called(process)
    with pytest.raises(Unavailable):
        await process.store(world.sessions, seconds=0)
    assert len(process._changed) == 1


async def test_minutes_are_the_database_s(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G104: a process whose clock is wrong counts into the right minute from its first write on."""
    monkeypatch.setattr("services.calls.counts.time", lambda: time() - 3 * 3600)
    process = CallCounts(KEPT)
    called(process)
    await process.store(world.sessions)
    assert (await hour_of(world)).total.calls == 0
    called(process)
    called(process)
    await process.store(world.sessions)
    minutes = (await hour_of(world)).minutes
    assert sum(minute.calls for minute in minutes[-2:]) == 2


async def test_a_clean_stop_stores_the_last_calls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G104: at the end of a process nothing is left; while it runs, counts are stored by themselves."""
    monkeypatch.setattr(counts, "STORE_EVERY", timedelta(milliseconds=20))
    async with open_call_counts(world.sessions, KEPT) as process:
        called(process)

        async def is_stored() -> bool:
            return (await hour_of(world)).total.calls == 1

        await eventually(is_stored, "the count is stored")
    async with open_call_counts(world.sessions, KEPT) as process:
        called(process)
    assert (await hour_of(world)).total.calls == 2


async def test_memory_is_given_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G104: minutes that are over leave the memory once they are stored, or past the retention."""
    process = CallCounts(KEPT)
    now = process._minute()
    for minutes_ago in (200, 100, 0):
        monkeypatch.setattr(process, "_minute", lambda ago=minutes_ago: now - ago)
        called(process)
    await process.store(world.sessions)
    assert [key[2] for key in process._buckets] == [now]
    async with world.sessions() as session:
        assert await session.scalar(text("SELECT count(*) FROM call_counts")) == 2


async def test_retention_removes_old_counts(world: World, settings: Settings) -> None:
    """G104: after PODIUM_CALL_COUNTS_RETENTION, and in steps."""
    add = text("""
        INSERT INTO call_counts (agent_id, minute, deployment_id, process_id, calls, agent_failures, gateway_failures,
            answered, answer_seconds, longest_seconds)
        SELECT :agent, now() - n * interval '1 minute', 'v1', :agent, 1, 0, 0, 0, 0, 0 FROM generate_series(0, 299) AS n
    """)
    await world.do(lambda session: session.execute(add, {"agent": AGENT}))
    steps = settings.model_copy(update={"sweep_batch_size": 100})
    removed = [
        (await world.do(lambda session: sweep(session, RetentionTask.CALL_COUNTS, steps))).rows for _ in range(3)
    ]
    assert removed[0] == 100
    assert 178 <= sum(removed) <= 180
    assert (await hour_of(world)).total.calls == 60
