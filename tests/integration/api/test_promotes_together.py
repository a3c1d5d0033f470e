"""Promotes over HTTP that arrive together are committed together; each caller gets its own answer."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from api import batches
from services.storage.database import Sessions
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.integration.api.test_one_locked_agent import PROMPT_SECONDS, locked
from tests.support.instances import Instances
from tests.support.waiting import rows

CROWD = 30
# Rows of one transaction have the same xmin.
TRANSACTIONS = """
SELECT count(*) AS rows, count(DISTINCT xmin::text) AS transactions FROM promotions WHERE cause = 'manual'
"""
ENDING = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = 'podium-api'"
)


async def fleet(api: Api, number: int = CROWD) -> list[dict[str, Any]]:
    """Agents, each with `<name>.1` in production and `<name>.2` as a preview."""
    names = [f"bot-{each}" for each in range(number)]
    await asyncio.gather(*(api.register(name, f"{name}.1") for name in names))
    return await asyncio.gather(*(api.register(name, f"{name}.2") for name in names))


def promoting(
    api: Api, agent: dict[str, Any], version: int = 2, headers: dict[str, str] | None = None
) -> asyncio.Task[Answer]:
    """A promote under way."""
    path = f"/agents/{agent['id']}/deployments/{agent['name']}.{version}/promote"
    return asyncio.create_task(api.post(path, headers=headers or {}))


async def test_they_share_a_few_commits(api: Api, sessions: Sessions) -> None:
    """Each caller gets the answer for its own agent, as a later read shows it; a refused one is refused alone."""
    agents = await fleet(api)
    outdated = promoting(api, agents[0], headers={"If-Match": '"7"'})
    answers = await asyncio.gather(*(promoting(api, agent) for agent in agents[1:]))
    (await outdated).problem(412, "generation-mismatch")
    for agent, answer in zip(agents[1:], answers, strict=True):
        assert answer.status == 200
        assert answer.headers["x-podium-generation"] == "2"
        assert answer.body == (await api.get(f"/agents/{agent['id']}/deployments/{agent['name']}.2")).body
    [found] = await rows(sessions, TRANSACTIONS)
    assert found.rows == CROWD - 1
    assert found.transactions <= CROWD / 3


async def test_one_at_a_time_is_committed_at_once(api: Api) -> None:
    """Nothing waits for more promotes to come."""
    [agent] = await fleet(api, 1)
    for number in range(4):
        async with asyncio.timeout(PROMPT_SECONDS):
            assert (await promoting(api, agent, 1 + (number + 1) % 2)).status == 200


async def test_the_answer_names_the_pods_of_a_deployment(api: Api, instances: Instances) -> None:
    """As a read of the deployment does."""
    [agent] = await fleet(api, 1)
    await instances.add("bot-0.2", {"a": "http://10.0.0.1:1", "b": "http://10.0.0.2:1"})
    answer = await promoting(api, agent)
    assert {each["instance_id"] for each in answer.json["instances"]} == {"a", "b"}
    assert answer.body == (await api.get(f"/agents/{agent['id']}/deployments/bot-0.2")).body


async def test_a_locked_agent_waits_alone(api: Api, sessions: Sessions) -> None:
    """G88: promotes of other agents that arrive in the same moment are answered at once."""
    agents = await fleet(api)
    async with locked(sessions, "bot-0"):
        stuck = [promoting(api, agents[0], version) for version in (2, 1, 2)]
        async with asyncio.timeout(2 * PROMPT_SECONDS):
            others = await asyncio.gather(*(promoting(api, agent) for agent in agents[1:]))
        assert {answer.status for answer in others} == {200}
        assert not any(task.done() for task in stuck)
    assert {(await task).status for task in stuck} == {200}
    assert (await promoting(api, agents[0])).status == 200


async def test_one_that_the_database_refuses(api: Api, sessions: Sessions) -> None:
    """G88: it fails alone."""
    agents = await fleet(api)
    async with sessions() as session, session.begin():
        await session.execute(
            text("ALTER TABLE promotions ADD CONSTRAINT poison CHECK (to_deployment_id <> 'bot-7.2') NOT VALID")
        )
    # Not on a terminal: rendering the traceback for it takes seconds on a busy machine.
    with capture_logs() as logs:
        answers = await asyncio.gather(*(promoting(api, agent) for agent in agents))
    assert {"api.batch_failed", "request.failed"} <= {entry["action"] for entry in logs}
    statuses = [answer.status for answer in answers]
    assert statuses.pop(7) == 500
    assert set(statuses) == {200}


async def test_the_database_goes_away_and_comes_back(serve: Serve, sessions: Sessions) -> None:
    """503 for those under way, whose repetition succeeds; nothing hangs."""
    api = await serve(database_timeout=timedelta(seconds=2))
    agents = await fleet(api, 10)
    seen = set()
    for turn in range(6):
        tasks = [promoting(api, agent, 1 + (turn + 1) % 2) for agent in agents]
        await asyncio.sleep(0.005 * turn)
        async with sessions() as session:
            await session.execute(ENDING)
        for task in tasks:
            answer = await task
            seen.add(answer.status)
            if answer.status == 503:
                assert answer.headers["retry-after"]
        async with asyncio.timeout(5):
            while (await promoting(api, agents[0])).status != 200:
                await asyncio.sleep(0.05)
    assert seen <= {200, 503}


async def test_a_frozen_database(serve: Serve, sessions: Sessions) -> None:
    """503 after the time that a request waits for the database, for those that wait for the next batch as well."""
    api = await serve(database_timeout=timedelta(seconds=1))
    agents = await fleet(api, 2)
    async with sessions() as session, session.begin():
        await session.execute(text("LOCK TABLE promotions IN ACCESS EXCLUSIVE MODE"))
        async with asyncio.timeout(6):
            first = promoting(api, agents[0])
            await asyncio.sleep(0.3)
            second = promoting(api, agents[1])
            for task in (first, second):
                answer = await task
                assert answer.status == 503
                assert answer.headers["retry-after"]
    assert (await promoting(api, agents[1])).status == 200


async def test_too_many(serve: Serve, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with retry-after at once, as for any queue that is full."""
    monkeypatch.setattr(batches, "WAITING_MAX", 4)
    api = await serve()
    agents = await fleet(api, 1)
    async with sessions() as session, session.begin():
        await session.execute(text("LOCK TABLE promotions IN ACCESS EXCLUSIVE MODE"))
        tasks = [promoting(api, agents[0]) for _ in range(20)]
        async with asyncio.timeout(3):
            while len(refused := [task for task in tasks if task.done()]) < 5:
                await asyncio.sleep(0.01)
        for task in refused:
            task.result().problem(503, "agent-busy")
    await asyncio.gather(*tasks)
