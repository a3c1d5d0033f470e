"""Registrations over HTTP that arrive together are committed together; each caller gets its own answer."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from api import batches
from services.storage.database import Sessions
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.test_one_locked_agent import PROMPT_SECONDS, locked
from tests.support.factories import a_body
from tests.support.waiting import rows

CROWD = 60
# Rows of one transaction have the same xmin.
TRANSACTIONS = "SELECT count(*) AS rows, count(DISTINCT xmin::text) AS transactions FROM registrations"


async def test_they_share_a_few_commits(api: Api, sessions: Sessions) -> None:
    """Each caller gets the answer for its own agent; a refused one is refused alone."""
    await api.register("owner", "taken")
    names = [f"bot-{number}" for number in range(CROWD)]
    bodies = [a_body(name, deployment_id=f"{name}.v1", acp_url=f"http://{name}:8000") for name in names]
    *answers, thief = await asyncio.gather(
        *(api.post("/agents/register", body) for body in bodies),
        api.post("/agents/register", a_body("thief", deployment_id="taken")),
    )
    for name, answer in zip(names, answers, strict=True):
        assert answer.status == 200
        assert answer.json["name"] == name
        assert answer.json["acp_url"] == f"http://{name}:8000"
        assert answer.json["production_deployment_id"] == f"{name}.v1"
        assert answer.headers["x-podium-generation"] == "1"
    thief.problem(409, "deployment-of-another-agent")
    [found] = await rows(sessions, TRANSACTIONS)
    assert found.rows == CROWD + 2
    assert found.transactions <= CROWD / 4


async def test_one_at_a_time_is_committed_at_once(api: Api, sessions: Sessions) -> None:
    """Nothing waits for more registrations to come."""
    for number in range(3):
        async with asyncio.timeout(PROMPT_SECONDS):
            await api.register(f"bot-{number}", f"v{number}")
    [found] = await rows(sessions, TRANSACTIONS)
    assert found.transactions == 3


async def test_several_of_one_agent_keep_their_order(api: Api, sessions: Sessions) -> None:
    """The last one that arrived wins, although all of one transaction have the same time."""
    await api.register("bot", "v1")
    for turn in range(5):
        addresses = [f"http://10.0.{turn}.{number}:8000" for number in range(20)]
        tasks = []
        for address in addresses:
            tasks.append(
                asyncio.create_task(api.post("/agents/register", a_body("bot", deployment_id="v1", acp_url=address)))
            )
            # So that they arrive in this order: one connection after another.
            await asyncio.sleep(0.002)
        assert {(await task).status for task in tasks} == {200}
        [found] = await rows(sessions, "SELECT acp_url FROM deployments")
        assert found.acp_url == addresses[-1]
    [found] = await rows(sessions, "SELECT count(*) AS stale FROM registrations WHERE outcome = 'Stale'")
    assert found.stale == 0


async def test_a_locked_agent_waits_alone(api: Api, sessions: Sessions) -> None:
    """Registrations of other agents that arrive in the same moment are answered at once."""
    await api.register("stuck", "stuck.v1")
    async with locked(sessions, "stuck"):
        stuck = [
            asyncio.create_task(api.post("/agents/register", a_body("stuck", deployment_id=f"stuck.{number}")))
            for number in range(3)
        ]
        async with asyncio.timeout(2 * PROMPT_SECONDS):
            others = await asyncio.gather(*(api.register(f"bot-{number}", f"v{number}") for number in range(20)))
        assert len(others) == 20
        assert not any(task.done() for task in stuck)
    assert {(await task).status for task in stuck} == {200}


async def test_one_that_the_database_refuses(api: Api, sessions: Sessions) -> None:
    """It fails alone."""
    async with sessions() as session, session.begin():
        await session.execute(
            text("ALTER TABLE deployments ADD CONSTRAINT deployments_poison CHECK (docker_image <> 'poison')")
        )
    bodies = [a_body(f"bot-{number}", deployment_id=f"v{number}", docker_image="fine") for number in range(20)]
    bodies.insert(7, a_body("poisoned", deployment_id="p1", docker_image="poison"))
    # Not on a terminal: rendering the traceback for it takes seconds on a busy machine.
    with capture_logs() as logs:
        answers = await asyncio.gather(*(api.post("/agents/register", body) for body in bodies))
    assert {"api.batch_failed", "request.failed"} <= {entry["action"] for entry in logs}
    statuses = [answer.status for answer in answers]
    assert statuses.pop(7) == 500, [answer.body for answer in answers]
    assert statuses == [200] * 20, [answer.body for answer in answers]


async def test_the_database_goes_away_and_comes_back(serve: Serve, sessions: Sessions) -> None:
    """503 for those under way, whose repetition succeeds; nothing hangs."""
    api = await serve(database_timeout=timedelta(seconds=2))
    await api.register("bot-0", "v0")
    ending = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'podium-api'"
    )
    seen = set()
    for turn in range(5):
        tasks = [
            asyncio.create_task(
                api.post("/agents/register", a_body(f"bot-{number}", deployment_id=f"v{number}.{turn}"))
            )
            for number in range(20)
        ]
        await asyncio.sleep(0.01 * turn)
        async with sessions() as session:
            await session.execute(ending)
        for task in tasks:
            answer = await task
            seen.add(answer.status)
            if answer.status == 503:
                assert answer.headers["retry-after"]
        async with asyncio.timeout(5):
            while (await api.post("/agents/register", a_body("bot-0", deployment_id="v0"))).status != 200:
                await asyncio.sleep(0.05)
    assert seen <= {200, 503}


async def test_a_frozen_database(serve: Serve, sessions: Sessions) -> None:
    """503 after the time that a request waits for the database, for those that wait for the next batch as well."""
    api = await serve(database_timeout=timedelta(seconds=1))
    await api.register("bot", "v1")
    async with sessions() as session, session.begin():
        await session.execute(text("LOCK TABLE registrations IN ACCESS EXCLUSIVE MODE"))
        async with asyncio.timeout(5):
            first = asyncio.create_task(api.post("/agents/register", a_body("bot-1", deployment_id="w1")))
            await asyncio.sleep(0.3)
            second = asyncio.create_task(api.post("/agents/register", a_body("bot-2", deployment_id="w2")))
            assert {(await first).status, (await second).status} == {503}
    assert (await api.post("/agents/register", a_body("bot-2", deployment_id="w2"))).status == 200


async def test_too_many(serve: Serve, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with retry-after at once, as for any queue that is full."""
    monkeypatch.setattr(batches, "WAITING_MAX", 4)
    api = await serve()
    await api.register("bot", "v1")
    async with sessions() as session, session.begin():
        await session.execute(text("LOCK TABLE registrations IN ACCESS EXCLUSIVE MODE"))
        tasks = [
            asyncio.create_task(api.post("/agents/register", a_body(f"bot-{number}", deployment_id=f"w{number}")))
            for number in range(20)
        ]
        refused, _ = await asyncio.wait(tasks, timeout=0.8)
        assert len(refused) >= 10
        for task in refused:
            task.result().problem(503, "agent-busy")
    await asyncio.gather(*tasks)
