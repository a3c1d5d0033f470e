"""A janitor in trouble of its own harms no deployment, and many failing previews hide no failing production."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from services.agents.commands import AgentChange, change_agent
from services.domain.caller import Caller
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.integration.api.client import running_api
from tests.integration.api.pods import Pod, running_pod, silent_port
from tests.integration.workers.conftest import working
from tests.integration.workers.test_janitor import probed, register, status_is
from tests.support.waiting import eventually, eventually_rows, rows
from workers.janitor.worker import Janitor
from workers.metrics import WorkerMetrics

INTERVAL, THRESHOLD = 0.3, 3
FAILED = "SELECT id FROM deployments WHERE status = 'Failed' ORDER BY id"
CALL = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {}}


@pytest.fixture
def eager(settings: Settings) -> Settings:
    """Settings with which a janitor detects a dead pod within a second."""
    return settings.model_copy(
        update={
            "probe_interval": timedelta(seconds=INTERVAL),
            "probe_threshold": THRESHOLD,
            "janitor_poll": timedelta(seconds=0.02),
        }
    )


@asynccontextmanager
async def a_janitor(settings: Settings, sessions: Sessions, **changes: Any) -> AsyncIterator[WorkerMetrics]:
    """A janitor with these changes of its settings, and its metrics."""
    metrics = WorkerMetrics()
    janitor = Janitor(settings.model_copy(update=changes), sessions, metrics)
    async with working(lambda _, stop: janitor.run(stop), settings):
        yield metrics


def probes(metrics: WorkerMetrics, result: str) -> float:
    """How many probes had this result."""
    return metrics.registry.get_sample_value("podium_probes_total", {"result": result}) or 0


async def until_probed(metrics: WorkerMetrics, result: str, times: float) -> None:
    """Wait until so many probes more had this result."""
    enough = probes(metrics, result) + times

    async def probed() -> bool:
        return probes(metrics, result) >= enough

    await eventually(probed, f"{times} more probes with the result {result}")


class HealthPages:
    """Pods of one agent each, whose health pages answer with a status that the test sets; their calls are answered."""

    def __init__(self) -> None:
        self.pods: list[Pod] = []
        self.status: dict[str, int] = {}

    async def start(self, stack: AsyncExitStack, sessions: Sessions, number: int) -> None:
        """Start this many pods, and register them as the production of `bot-<number>`."""
        for each in range(number):
            name = f"bot-{each}"

            async def answer(request: web.BaseRequest, name: str = name) -> web.StreamResponse:
                is_probe = request.path == "/healthz"
                return web.Response(status=self.status[name] if is_probe else 200)

            self.status[name] = 200
            self.pods.append(await stack.enter_async_context(running_pod(answer)))
            await register(sessions, name, self.pods[-1].url, name=name)

    def all_answer(self, status: int) -> None:
        """Have all of them answer with this status."""
        self.status = dict.fromkeys(self.status, status)


async def test_a_janitor_whose_settings_deny_every_address_fails_nothing(eager: Settings, sessions: Sessions) -> None:
    """30 productions stay Ready. The janitor reports what it cannot do."""
    async with AsyncExitStack() as stack:
        pod = await stack.enter_async_context(running_pod())
        for number in range(30):
            await register(sessions, f"v{number}", pod.url, name=f"bot-{number}")
        with capture_logs() as logs:
            metrics = await stack.enter_async_context(a_janitor(eager, sessions, dial_ports=(1,)))
            await until_probed(metrics, "unknown", 30 * (THRESHOLD + 2))
    assert await rows(sessions, FAILED) == []
    assert await rows(sessions, "SELECT 1 FROM probes WHERE streak <> 0") == []
    assert pod.seen == []
    [line] = [each for each in logs if each.get("action") == "janitor.probe_unknown"]
    assert "may not be dialled" in line["why"]


async def test_a_janitor_whose_probes_mostly_fail_sets_none_failed(eager: Settings, sessions: Sessions) -> None:
    """Until they are answered again: then the one that still fails is Failed."""
    pages = HealthPages()
    async with AsyncExitStack() as stack:
        await pages.start(stack, sessions, 8)
        with capture_logs() as logs:
            metrics = await stack.enter_async_context(a_janitor(eager, sessions))
            await until_probed(metrics, "answered", 16)
            pages.all_answer(500)
            [janitor] = await eventually_rows(sessions, "SELECT * FROM janitors WHERE panic_since IS NOT NULL")
            await until_probed(metrics, "failed", 8 * (THRESHOLD + 2))
            assert await rows(sessions, FAILED) == []
            assert metrics.registry.get_sample_value("podium_janitor_panic") == 1
            pages.all_answer(200)
            pages.status["bot-3"] = 500
            await eventually_rows(sessions, "SELECT 1 FROM janitors WHERE panic_since IS NULL")
            await eventually_rows(sessions, status_is("Failed", "bot-3"))
    assert await rows(sessions, FAILED) == [("bot-3",)]
    assert 5 <= janitor.failing <= janitor.probed <= 8
    assert [each["action"] for each in logs if "panic" in each.get("action", "")] == [
        "janitor.panic",
        "janitor.panic_over",
    ]
    assert await rows(sessions, "SELECT 1 FROM janitors") == []


async def test_in_a_small_installation_all_dead_pods_are_failed(eager: Settings, sessions: Sessions) -> None:
    """Four agents are too few to tell a fault of the janitor from theirs."""
    pages = HealthPages()
    async with AsyncExitStack() as stack:
        await pages.start(stack, sessions, 4)
        pages.all_answer(500)
        await stack.enter_async_context(a_janitor(eager, sessions))
        await eventually_rows(sessions, FAILED, 4)


async def test_a_janitor_that_cannot_reach_a_production_does_not_fail_it_alone(
    eager: Settings, sessions: Sessions
) -> None:
    """Another janitor, which claims less often, is asked for its opinion. Two that agree fail it."""
    status = 200

    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return web.Response(status=status)

    # The other janitor has one interval for its opinion.
    slower = eager.model_copy(update={"probe_interval": timedelta(seconds=1)})
    async with AsyncExitStack() as stack:
        pod = await stack.enter_async_context(running_pod(slow))
        hasty = await stack.enter_async_context(a_janitor(slower, sessions, probe_timeout=timedelta(seconds=0.001)))
        calm = await stack.enter_async_context(a_janitor(slower, sessions, janitor_poll=timedelta(seconds=0.25)))
        await eventually_rows(sessions, "SELECT 1 FROM janitors", 2)
        await register(sessions, "v1", pod.url)
        await until_probed(hasty, "failed", 2 * THRESHOLD)
        assert probes(calm, "answered") > 0
        assert await rows(sessions, FAILED) == []
        status = 500
        await eventually_rows(sessions, status_is("Failed"))


async def test_a_production_that_answers_calls_is_not_failed(eager: Settings, sessions: Sessions) -> None:
    """Its health page fails all the time. Once the calls end, it is Failed after the usual number of probes."""
    pages = HealthPages()
    # A call is stored once a second at most: several times while three probes fail, also on a slow machine.
    slower = eager.model_copy(update={"probe_interval": timedelta(seconds=1.5)})
    async with AsyncExitStack() as stack:
        await pages.start(stack, sessions, 1)
        api = await stack.enter_async_context(running_api(slower))
        pages.all_answer(500)

        async def call() -> None:
            while True:
                answer = await api.post("/agents/name/bot-0/rpc", CALL)
                assert answer.status == 200
                await asyncio.sleep(0.05)

        calling = asyncio.create_task(call())
        metrics = await stack.enter_async_context(a_janitor(slower, sessions))
        await until_probed(metrics, "failed", 3 * THRESHOLD)
        assert not calling.done()
        assert await rows(sessions, FAILED) == []
        calling.cancel()
        await eventually_rows(sessions, status_is("Failed", "bot-0"))


async def test_hanging_previews_do_not_delay_the_detection_of_a_dead_production(
    eager: Settings, sessions: Sessions
) -> None:
    """160 previews that never answer would need sixteen times as many concurrent probes as the janitor has."""
    interval = timedelta(seconds=0.5)
    busy = {"probe_interval": interval, "probe_timeout": interval, "probe_concurrency": 10}
    async with AsyncExitStack() as stack:
        pages = HealthPages()
        await pages.start(stack, sessions, 1)
        port = await stack.enter_async_context(silent_port())
        for number in range(160):
            await register(sessions, f"preview-{number}", f"http://127.0.0.1:{port}/{number}", name="previews")
        [agent] = await rows(sessions, "SELECT id FROM agents WHERE name = 'previews'")
        patient = AgentChange(probe_interval_seconds=5, probe_timeout_seconds=5)
        await in_transaction(sessions, lambda session: change_agent(session, agent.id, patient, Caller(actor="amy")))
        await stack.enter_async_context(a_janitor(eager, sessions, **busy))
        await eventually(lambda: probed(pages.pods[0], 4), "repeated probes of production", seconds=60)
        pages.all_answer(500)
        died = monotonic()
        await eventually_rows(sessions, status_is("Failed", "bot-0"), seconds=60)
        took = monotonic() - died
    assert took < THRESHOLD * 0.5 + 0.5 + 1, took
