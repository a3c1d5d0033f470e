"""An agent whose row is locked: its own changes wait, those of other agents and all reads do not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from sqlalchemy import text

from api import change_queues
from services.storage.database import Sessions
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.support.factories import a_body
from tests.support.waiting import eventually

CROWD = 20
# Of a request that waits for nobody, on a busy machine.
PROMPT_SECONDS = 1.5


@asynccontextmanager
async def locked(sessions: Sessions, *names: str) -> AsyncIterator[None]:
    """The rows of these agents, locked by another program."""
    async with sessions() as session, session.begin():
        await session.execute(text("SELECT FROM agents WHERE name = ANY(:names) FOR UPDATE"), {"names": list(names)})
        yield


async def changes_of(api: Api, agent: dict[str, str]) -> list[Answer]:
    """The answers to many registrations and promotes of one agent, sent at once."""
    name, promote = agent["name"], f"/agents/{agent['id']}/deployments/v1/promote"
    registrations = [api.post("/agents/register", a_body(name, deployment_id=f"{name}-{n}")) for n in range(CROWD)]
    return await asyncio.gather(*registrations, *(api.post(promote) for _ in range(CROWD)))


async def waiting_for_locks(sessions: Sessions) -> int:
    """How many database sessions wait for a lock."""
    async with sessions() as session:
        found = await session.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )
    return int(found or 0)


async def test_other_agents_do_not_wait(api: Api, sessions: Sessions) -> None:
    """While 40 changes of a locked agent wait, changes of others, reads and readiness are as quick as ever."""
    stuck = await api.register("stuck", "v1")
    other = await api.register("other", "other-1")
    async with locked(sessions, "stuck"):
        crowd = asyncio.create_task(changes_of(api, stuck))

        async def begun() -> bool:
            return await waiting_for_locks(sessions) >= 2

        await eventually(begun, "changes of the agent wait")
        for number in range(2, 6):
            async with asyncio.timeout(PROMPT_SECONDS):
                await api.register("other", f"other-{number}")
            async with asyncio.timeout(PROMPT_SECONDS):
                await api.promote(other, f"other-{number}")
            async with asyncio.timeout(PROMPT_SECONDS):
                assert (await api.get("/health/ready")).status == 200
            async with asyncio.timeout(PROMPT_SECONDS):
                assert (await api.get(f"/agents/{stuck['id']}")).status == 200
        assert await waiting_for_locks(sessions) <= 4
        assert not crowd.done()
    answers = await crowd
    assert [answer.status for answer in answers] == [200] * 2 * CROWD


async def test_changes_that_wait_too_long(serve: Serve, sessions: Sessions) -> None:
    """503 with retry-after once the time for a lock or for the queue is over."""
    api = await serve(lock_timeout=timedelta(milliseconds=500), database_timeout=timedelta(seconds=3))
    stuck = await api.register("stuck", "v1")
    async with locked(sessions, "stuck"), asyncio.timeout(8):
        answers = await changes_of(api, stuck)
    for answer in answers:
        answer.problem(503, "agent-busy")
        assert answer.headers["retry-after"] == "1"
    assert (await api.post(f"/agents/{stuck['id']}/deployments/v1/promote")).status == 200


async def test_a_full_queue(serve: Serve, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with retry-after at once."""
    monkeypatch.setattr(change_queues, "WAITING_MAX", 3)
    api = await serve()
    stuck = await api.register("stuck", "v1")
    async with locked(sessions, "stuck"):
        promote = f"/agents/{stuck['id']}/deployments/v1/promote"
        tasks = [asyncio.create_task(api.post(promote)) for _ in range(CROWD)]
        refused, waiting = await asyncio.wait(tasks, timeout=2)
        assert len(waiting) == 2 + 3
        for task in refused:
            task.result().problem(503, "agent-busy")
            assert task.result().headers["retry-after"] == "1"
    assert [(await task).status for task in waiting] == [200] * 5


async def test_many_locked_agents(api: Api, sessions: Sessions) -> None:
    """Some connections stay free for reads however many agents are locked."""
    names = [f"stuck-{number}" for number in range(12)]
    agents = [await api.register(name, f"{name}-v1") for name in names]
    async with locked(sessions, *names):
        crowd = [
            asyncio.create_task(api.post(f"/agents/{agent['id']}/deployments/{agent['name']}-v1/promote"))
            for agent in agents
        ]

        async def begun() -> bool:
            return await waiting_for_locks(sessions) >= 8

        await eventually(begun, "many changes wait")
        async with asyncio.timeout(PROMPT_SECONDS):
            assert (await api.get("/agents")).status == 200
    for task in crowd:
        assert (await task).status == 200


async def test_readiness_without_a_free_connection(serve: Serve, sessions: Sessions) -> None:
    """It has a connection of its own; many questions at once share it."""
    api = await serve(database_pool_size=1)
    stuck = await api.register("stuck", "v1")
    async with locked(sessions, "stuck"):
        waiting = asyncio.create_task(api.post(f"/agents/{stuck['id']}/deployments/v1/promote"))

        async def begun() -> bool:
            return await waiting_for_locks(sessions) == 1

        await eventually(begun, "the only connection is in use")
        async with asyncio.timeout(2 * PROMPT_SECONDS):
            answers = await asyncio.gather(*(api.get("/health/ready") for _ in range(30)))
        assert {answer.status for answer in answers} == {200}
    assert (await waiting).status == 200


async def test_readiness_after_the_database_has_ended_its_connection(api: Api, sessions: Sessions) -> None:
    """The first answer after a restart of the database is right."""
    assert (await api.get("/health/ready")).status == 200
    async with sessions() as session:
        await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'podium-api'"
            )
        )
    assert (await api.get("/health/ready")).status == 200
