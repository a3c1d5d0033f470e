"""Statuses follow the answers of pods, with any number of janitors, and also when a janitor dies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aio_pika.abc import AbstractConnection
from aiohttp import web

from services.agents.commands import AgentChange, change_agent
from services.domain.caller import Caller
from services.promotion.promote import promote
from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.integration.api.pods import Pod, refused_address, running_pod
from tests.integration.workers.conftest import working
from tests.support.broker import publish
from tests.support.factories import a_body, incoming
from tests.support.waiting import eventually, eventually_rows, rows
from workers.janitor.worker import Janitor
from workers.runner import run_janitor, run_registrar

INTERVAL = timedelta(seconds=0.3)


@pytest.fixture
def eager(settings: Settings) -> Settings:
    """Settings with which a janitor detects a dead pod within a second."""
    return settings.model_copy(update={"probe_interval": INTERVAL, "janitor_poll": timedelta(seconds=0.02)})


@asynccontextmanager
async def a_switchable_pod() -> AsyncIterator[tuple[Pod, dict[str, int]]]:
    """A pod whose health page answers with the `status` in the dict."""
    answer = {"status": 200}

    async def handler(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=answer["status"])

    async with running_pod(handler) as pod:
        yield pod, answer


async def register(sessions: Sessions, deployment_id: str, url: str, **fields: Any) -> None:
    """Register a pod."""
    message = incoming(deployment_id=deployment_id, acp_url=url, **fields)
    await in_transaction(sessions, lambda session: register_batch(session, [message]))


async def probed(pod: Pod, times: int) -> bool:
    """Whether the pod has been probed at least so many times."""
    return len(pod.seen) >= times


def status_is(status: str, deployment_id: str = "v1") -> str:
    """A query that finds this deployment if it has this status."""
    return f"SELECT * FROM deployments WHERE id = '{deployment_id}' AND status = '{status}'"


async def test_a_dead_pod_is_failed_and_one_that_answers_again_is_ready(eager: Settings, sessions: Sessions) -> None:
    """Each change has an event and a reason; production stays, and two janitors do not count a failure twice."""
    async with a_switchable_pod() as (pod, answer), working(run_janitor, eager), working(run_janitor, eager):
        await register(sessions, "v1", pod.url)
        await eventually(lambda: probed(pod, 3), "repeated probes")
        answer["status"] = 500
        [failed] = await eventually_rows(sessions, status_is("Failed"))
        answer["status"] = 404
        [ready] = await eventually_rows(sessions, status_is("Ready"))
    assert failed.status_reason.startswith("3 probes in a row failed, the last one: ")
    assert failed.is_production
    assert ready.is_production
    assert ready.status_reason is None
    types = [row.type for row in await rows(sessions, "SELECT type FROM outbox ORDER BY id")]
    assert [each.split(".")[2] for each in types[-2:]] == ["failed", "ready"]
    assert {seen.target for seen in pod.seen} == {"/healthz"}


async def test_a_pod_cannot_prevent_its_verdict(eager: Settings, sessions: Sessions) -> None:
    """A health page that names an agent with characters that cannot be stored fails the probe like any other."""

    async def names_another(_: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"agent_id": "another\0\x1b[2J"})

    async with running_pod(names_another) as pod, working(run_janitor, eager):
        await register(sessions, "v1", pod.url)
        [failed] = await eventually_rows(sessions, status_is("Failed"))
    assert failed.status_reason.endswith("the pod there belongs to another agent, whose id is not printable")


async def test_one_flicker_never_flips_a_state(eager: Settings, sessions: Sessions) -> None:
    """A pod that repeatedly fails two of three probes stays Ready."""
    count = 0

    async def fails_two_of_three(_: web.BaseRequest) -> web.StreamResponse:
        nonlocal count
        count += 1
        return web.Response(status=200 if count % 3 == 0 else 503)

    # Longer, because a probe may take as long as the interval, and a slow machine must not fail more of them.
    slower = eager.model_copy(update={"probe_interval": timedelta(seconds=1)})
    async with running_pod(fails_two_of_three) as pod, working(run_janitor, slower):
        await register(sessions, "v1", pod.url)
        await eventually(lambda: probed(pod, 7), "repeated probes")
        assert await rows(sessions, "SELECT 1 FROM outbox WHERE type LIKE '%failed%'") == []


async def test_a_pod_that_announces_itself_during_a_probe_is_not_failed_by_it(
    eager: Settings, sessions: Sessions
) -> None:
    """A verdict counts only for the announcement that was probed."""
    probing, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        probing.set()
        await go_on.wait()
        return web.Response(status=500)

    patient = eager.model_copy(update={"probe_interval": timedelta(seconds=10), "probe_threshold": 1})
    async with running_pod(slow) as old, running_pod() as new:
        janitor = Janitor(patient, sessions)
        async with working(lambda _, stop: janitor.run(stop), patient):
            await register(sessions, "v1", old.url)
            await probing.wait()
            await register(sessions, "v1", new.url)
            await eventually(lambda: probed(new, 1), "a probe of the new address")
            go_on.set()

            async def all_decided() -> bool:
                return not janitor._probes

            await eventually(all_decided, "both probes decided")
        assert await rows(sessions, "SELECT 1 FROM outbox WHERE type LIKE '%failed%'") == []


async def test_a_version_whose_pod_never_comes_is_failed(eager: Settings, sessions: Sessions) -> None:
    """It was Pending past the deadline, and gets an event. Another one before its deadline stays Pending."""
    await register(sessions, "v1", "http://127.0.0.1:9")
    create = (
        "INSERT INTO deployments (id, agent_id, status, status_changed_at, created_at)"
        " SELECT '{0}', id, 'Pending', now() - interval '{1} seconds', now() FROM agents"
    )
    async with sessions() as session, session.begin():
        connection = await session.connection()
        for name, age in (("late", 901), ("early", 600)):
            await connection.exec_driver_sql(create.format(name, age))
    async with working(run_janitor, eager):
        [late] = await eventually_rows(sessions, status_is("Failed", "late"))
    assert late.status_reason == "its pod did not announce itself within 15 minutes"
    assert await rows(sessions, status_is("Pending", "early"))


async def test_the_work_of_a_janitor_that_dies_is_taken_over(eager: Settings, sessions: Sessions) -> None:
    """What a dead janitor had claimed is due again after one interval."""
    probing = asyncio.Event()

    async def hangs(_: web.BaseRequest) -> web.StreamResponse:
        probing.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with running_pod(hangs) as pod:
        await register(sessions, "v1", pod.url)
        janitor = asyncio.ensure_future(run_janitor(eager, asyncio.Event()))
        await probing.wait()
        janitor.cancel()
        await asyncio.wait({janitor})
    async with refused_address() as dead, sessions() as session, session.begin():
        await (await session.connection()).exec_driver_sql(f"UPDATE deployments SET acp_url = '{dead}'")
    async with working(run_janitor, eager):
        await eventually_rows(sessions, status_is("Failed"))


async def test_with_proof_a_pod_is_ready_only_when_it_answers(
    eager: Settings, sessions: Sessions, broker: AbstractConnection
) -> None:
    """Pods of the SDK register before their port answers: the deployment stays Pending until a probe succeeds."""
    proving = eager.model_copy(update={"ready_requires_probe": True})
    answering = False

    async def starts(_: web.BaseRequest) -> web.StreamResponse:
        if not answering:
            raise ConnectionResetError
        return web.Response()

    async with AsyncExitStack() as stack:
        pod = await stack.enter_async_context(running_pod(starts))
        dead = await stack.enter_async_context(refused_address())
        for work in (run_registrar, run_janitor):
            await stack.enter_async_context(working(work, proving))
        await publish(broker, a_body("support-bot", deployment_id="v1", acp_url=pod.url))
        await publish(broker, a_body("other-bot", deployment_id="never", acp_url=dead))
        failing = " AND id IN (SELECT deployment_id FROM probes WHERE streak <= -1)"
        [waiting] = await eventually_rows(sessions, status_is("Pending") + failing)
        await eventually_rows(sessions, status_is("Pending", "never"))
        async with sessions() as session, session.begin():
            connection = await session.connection()
            await connection.exec_driver_sql(
                "UPDATE deployments SET status_changed_at = now() - interval '15 minutes' WHERE id = 'never'"
            )
        answering = True
        [ready] = await eventually_rows(sessions, status_is("Ready"))
        [never] = await eventually_rows(sessions, status_is("Failed", "never"))
    assert not waiting.is_production
    assert ready.is_production
    assert never.status_reason == "no probe was answered within 15 minutes"


PROMOTED = "SELECT * FROM outbox WHERE type = 'podium.deployment.promoted.v1' AND generation = {}"


async def three_versions(sessions: Sessions, **urls: str) -> None:
    """Make an agent with the rollback policy whose versions at these addresses were in production one after another."""
    for version, url in urls.items():
        await register(sessions, version, url)
    agent_id = (await rows(sessions, "SELECT id FROM agents"))[0].id
    change = AgentChange(on_failure="rollback")
    await in_transaction(sessions, lambda session: change_agent(session, agent_id, change, Caller(actor="amy")))
    for version in list(urls)[1:]:
        await in_transaction(
            sessions,
            lambda session, version=version: promote(session, agent_id, version, Caller(actor="amy")),  # type: ignore[misc]
        )


async def test_a_failed_production_goes_back_by_itself_to_what_answers(eager: Settings, sessions: Sessions) -> None:
    """It skips a dead version and records cause, actor and reason; a later preview is not promoted automatically."""
    async with AsyncExitStack() as stack:
        alive = await stack.enter_async_context(running_pod())
        dead = await stack.enter_async_context(refused_address())
        pod, answer = await stack.enter_async_context(a_switchable_pod())
        await three_versions(sessions, v1=alive.url, v2=dead, v3=pod.url)
        await stack.enter_async_context(working(run_janitor, eager))
        answer["status"] = 500
        [event] = await eventually_rows(sessions, PROMOTED.format(4))
        await register(sessions, "v4", alive.url)
        [agent] = await rows(sessions, "SELECT * FROM agents")
        [failed] = await rows(sessions, status_is("Failed", "v3"))
    assert event.payload["deployment_id"] == "v1"
    assert (event.payload["cause"], event.payload["actor"]) == ("rollback", "podium")
    assert event.payload["reason"] == f"Deployment v3 is Failed: {failed.status_reason}"
    assert (agent.production_deployment_id, agent.auto_promote_paused, agent.status) == ("v1", True, "Ready")
    assert (event.created_at - failed.status_changed_at).total_seconds() < 5


async def test_a_production_that_nothing_can_replace_stays_until_something_can(
    eager: Settings, sessions: Sessions
) -> None:
    """Traffic never moves to a dead version. Once an earlier version answers, it serves after the next probe."""
    async with AsyncExitStack() as stack:
        pod, answer = await stack.enter_async_context(a_switchable_pod())
        dead = await stack.enter_async_context(refused_address())
        answer["status"] = 500
        lasting = eager.model_copy(update={"probe_threshold": 20})
        await three_versions(sessions, v1=pod.url, v2=dead)
        async with sessions() as session, session.begin():
            connection = await session.connection()
            await connection.exec_driver_sql("UPDATE probes SET streak = -19 WHERE deployment_id = 'v2'")
        await stack.enter_async_context(working(run_janitor, lasting))
        await eventually_rows(sessions, status_is("Failed", "v2"))
        probes_before = len(pod.seen)
        await eventually(lambda: probed(pod, probes_before + 5), "repeated probes of the rollback candidate")
        assert await rows(sessions, PROMOTED.format(3)) == []
        answer["status"] = 200
        await eventually_rows(sessions, PROMOTED.format(3))


async def test_by_default_a_failed_production_stays(eager: Settings, sessions: Sessions) -> None:
    """Only agents whose policy says so are rolled back."""
    async with AsyncExitStack() as stack:
        alive = await stack.enter_async_context(running_pod())
        dead = await stack.enter_async_context(refused_address())
        await three_versions(sessions, v1=alive.url, v2=dead)
        agent_id = (await rows(sessions, "SELECT id FROM agents"))[0].id
        await in_transaction(
            sessions,
            lambda session: change_agent(session, agent_id, AgentChange(on_failure="hold"), Caller(actor="amy")),
        )
        await stack.enter_async_context(working(run_janitor, eager))
        await eventually_rows(sessions, "SELECT 1 FROM probes WHERE streak <= -5")
        assert await rows(sessions, PROMOTED.format(3)) == []
