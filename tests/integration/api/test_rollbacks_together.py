"""Rollbacks over HTTP that arrive together are committed together; each caller gets its own answer."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from sqlalchemy import text
from structlog.testing import capture_logs

from api.routes import rollback
from services.storage.database import Sessions
from tests.integration.api.client import Answer, Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, running_pod
from tests.integration.api.test_one_locked_agent import PROMPT_SECONDS, locked
from tests.integration.api.test_promotes_together import ENDING, fleet, promoting
from tests.support.waiting import rows

CROWD = 30
# Rows of one transaction have the same xmin.
TRANSACTIONS = """
SELECT count(*) AS rows, count(DISTINCT xmin::text) AS transactions FROM promotions WHERE cause = 'rollback'
"""
FORCE = {"force": True}


async def promoted_fleet(api: Api, number: int = CROWD) -> list[dict[str, Any]]:
    """Agents, each with `<name>.2` in production after `<name>.1`."""
    agents = await fleet(api, number)
    assert {answer.status for answer in await asyncio.gather(*(promoting(api, agent) for agent in agents))} == {200}
    return agents


def rolling_back(
    api: Api, agent: dict[str, Any], body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> asyncio.Task[Answer]:
    """A rollback under way, without a probe."""
    path = f"/agents/{agent['id']}/rollback"
    return asyncio.create_task(api.post(path, {**FORCE, **(body or {})}, headers=headers or {}))


async def test_they_share_a_few_commits(api: Api, sessions: Sessions) -> None:
    """G95: each caller gets the answer for its own agent, as a later read shows it; a refused one is refused alone."""
    agents = await promoted_fleet(api)
    outdated = rolling_back(api, agents[0], headers={"If-Match": '"7"'})
    promoted = promoting(api, agents[1], 1)
    answers = await asyncio.gather(*(rolling_back(api, agent) for agent in agents[2:]))
    (await outdated).problem(412, "generation-mismatch")
    assert (await promoted).status == 200
    for agent, answer in zip(agents[2:], answers, strict=True):
        assert answer.status == 200
        assert answer.headers["x-podium-generation"] == "3"
        assert answer.json["production_deployment_id"] == f"{agent['name']}.1"
        assert answer.json["auto_promote_paused"] is True
        assert answer.json == (await api.get(f"/agents/{agent['id']}")).json
    [found] = await rows(sessions, TRANSACTIONS)
    assert found.rows == CROWD - 2
    assert found.transactions <= CROWD / 3


async def test_the_caller_is_named_in_the_ledger(api: Api, sessions: Sessions) -> None:
    """G95: reason, request id and on-behalf-of of its own request; the event has its trace."""
    agents = await promoted_fleet(api, 3)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333{}-01"
    await asyncio.gather(
        *(
            rolling_back(
                api,
                agent,
                {"reason": f"reason {number}"},
                {
                    "x-request-id": f"request-{number}",
                    "x-podium-on-behalf-of": f"person {number}",
                    "traceparent": trace.format(number),
                },
            )
            for number, agent in enumerate(agents)
        )
    )
    found = await rows(
        sessions,
        "SELECT p.reason, p.request_id, p.on_behalf_of, o.traceparent, o.payload ->> 'cause' AS cause "
        "FROM promotions p JOIN outbox o USING (agent_id, generation) WHERE p.cause = 'rollback' ORDER BY p.reason",
    )
    assert [tuple(row) for row in found] == [
        (f"reason {n}", f"request-{n}", f"person {n}", trace.format(n), "rollback") for n in range(3)
    ]


async def test_several_of_one_agent_go_back_one_after_another(api: Api) -> None:
    """G95: in their order, each one from where the one before it went; of equal conditions one holds."""
    for version in range(1, 7):
        agent = await api.register("bot", f"bot.{version}")
        await api.promote(agent, f"bot.{version}")
    answers = await asyncio.gather(*(rolling_back(api, agent) for _ in range(4)))
    assert [each.json["production_deployment_id"] for each in answers] == ["bot.5", "bot.4", "bot.3", "bot.2"]
    condition = {"If-Match": '"10"'}
    answers = await asyncio.gather(*(rolling_back(api, agent, headers=condition) for _ in range(3)))
    assert sorted(each.status for each in answers) == [200, 412, 412]


async def test_a_locked_agent_waits_alone(api: Api, sessions: Sessions) -> None:
    """G96: rollbacks of other agents that arrive in the same moment are answered at once."""
    agents = await promoted_fleet(api)
    async with locked(sessions, "bot-0"):
        stuck = [rolling_back(api, agents[0], {"to": f"bot-0.{version}"}) for version in (1, 2, 1)]
        async with asyncio.timeout(2 * PROMPT_SECONDS):
            others = await asyncio.gather(*(rolling_back(api, agent) for agent in agents[1:]))
        assert {answer.status for answer in others} == {200}
        assert not any(task.done() for task in stuck)
    assert {(await task).status for task in stuck} == {200}


async def test_a_lock_that_is_held_too_long(serve: Serve, sessions: Sessions) -> None:
    """G96: 503 with retry-after, with a probe and without one, and nothing is written."""
    api = await serve(lock_timeout=timedelta(milliseconds=300))
    async with running_pod() as pod:
        agents = await promoted_fleet(api, 1)
        for version in (1, 2):
            await api.register("bot-0", f"bot-0.{version}", acp_url=pod.url)
        async with locked(sessions, "bot-0"):
            for body in ({}, {"force": False}, {"to": "bot-0.1"}):
                refused = await rolling_back(api, agents[0], body)
                refused.problem(503, "agent-busy")
                assert refused.headers["retry-after"]
    assert (await api.get(f"/agents/{agents[0]['id']}")).json["generation"] == 2


async def test_one_that_the_database_refuses(api: Api, sessions: Sessions) -> None:
    """G96: it fails alone."""
    agents = await promoted_fleet(api)
    async with sessions() as session, session.begin():
        await session.execute(
            text("ALTER TABLE promotions ADD CONSTRAINT poison CHECK (to_deployment_id <> 'bot-7.1') NOT VALID")
        )
    # Not on a terminal: rendering the traceback for it takes seconds on a busy machine.
    with capture_logs():
        answers = await asyncio.gather(*(rolling_back(api, agent) for agent in agents))
    statuses = [answer.status for answer in answers]
    assert statuses.pop(7) == 500
    assert set(statuses) == {200}


async def test_the_database_goes_away_and_comes_back(serve: Serve, sessions: Sessions) -> None:
    """G96: 503 for those under way; with If-Match, the repetition is made exactly once, or was made before."""
    api = await serve(database_timeout=timedelta(seconds=2))
    agents = await promoted_fleet(api, 8)
    for turn in range(4):
        generation = 2 + turn
        condition = {"If-Match": f'"{generation}"'}
        body = {"to": f"bot-{{}}.{1 + turn % 2}"}

        def asked(
            number: int, body: dict[str, str] = body, condition: dict[str, str] = condition
        ) -> asyncio.Task[Answer]:
            return rolling_back(api, agents[number], {"to": body["to"].format(number)}, condition)

        tasks = [asked(number) for number in range(8)]
        await asyncio.sleep(0.005 * turn)
        async with sessions() as session:
            await session.execute(ENDING)
        for number, task in enumerate(tasks):
            answer = await task
            async with asyncio.timeout(10):
                while answer.status == 503:
                    assert answer.headers["retry-after"]
                    answer = await asked(number)
            assert answer.status == 200
        found = await rows(sessions, "SELECT generation FROM agents")
        assert {row.generation for row in found} == {generation + 1}


async def test_a_target_that_changes_while_it_is_probed(api: Api, sessions: Sessions) -> None:
    """G96: the new target is probed too, and the rollback goes where a probe was answered."""
    changes: list[dict[str, Any]] = []

    async def change(_: web.BaseRequest) -> web.StreamResponse:
        if not changes:
            changes.append(await api.register("bot-0", "bot-0.1", acp_url=second.url))
        return web.Response()

    async with running_pod(change) as first, running_pod() as second:
        agents = await promoted_fleet(api, 1)
        await api.register("bot-0", "bot-0.1", acp_url=first.url)
        answer = await rolling_back(api, agents[0], {"force": False})
    assert answer.status == 200
    assert len(second.seen) == 1
    [row] = await rows(sessions, "SELECT to_acp_url FROM promotions WHERE cause = 'rollback'")
    assert row.to_acp_url == second.url


async def test_a_target_that_served_when_it_was_planned(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """G96: another version serves a moment later, so the target is probed after all."""
    agents = await promoted_fleet(api, 1)
    async with running_pod() as pod:
        await api.register("bot-0", "bot-0.2", acp_url=pod.url)
        plan = rollback._plan
        moved: list[str] = []

        async def and_promoted(*arguments: Any) -> Any:
            planned = await plan(*arguments)
            if not moved:
                moved.append("bot-0.1")
                await api.promote(agents[0], "bot-0.1")
            return planned

        monkeypatch.setattr(rollback, "_plan", and_promoted)
        answer = await rolling_back(api, agents[0], {"to": "bot-0.2", "force": False})
    assert answer.status == 200
    assert len(pod.seen) == 1


async def test_probed_ones_share_commits_as_well(api: Api, sessions: Sessions, pod: Pod) -> None:
    """G95: a plan takes no lock, so a rollback with a probe is as many transactions as one without."""
    names: Sequence[str] = [f"bot-{number}" for number in range(CROWD)]
    agents = await promoted_fleet(api)
    await asyncio.gather(*(api.register(name, f"{name}.1", acp_url=pod.url) for name in names))
    answers = await asyncio.gather(*(rolling_back(api, agent, {"force": False}) for agent in agents))
    assert {each.status for each in answers} == {200}
    [found] = await rows(sessions, TRANSACTIONS)
    assert found.rows == CROWD
    assert found.transactions <= CROWD / 2
    assert len(pod.seen) == CROWD


@pytest.mark.parametrize("to", ["nowhere", "bot-0.1"])
async def test_an_unknown_agent(api: Api, to: str) -> None:
    """404, as under the lock."""
    nobody = {"id": "00000000-0000-4000-8000-000000000000"}
    (await rolling_back(api, nobody, {"to": to})).problem(404, "agent-not-found")
