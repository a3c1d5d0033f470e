"""Janitors beside other changes of the same agents: claims, verdicts and promotes do not deadlock."""

import asyncio
import random
from contextlib import AsyncExitStack
from datetime import timedelta

from aiohttp import web
from structlog.testing import capture_logs

from services.domain.caller import Caller
from services.errors import DeploymentNotReady
from services.promotion.promote import promote
from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction, make_engine
from tests.integration.api.pods import running_pod
from tests.integration.workers.conftest import working
from tests.support.factories import incoming
from tests.support.invariants import assert_invariants
from tests.support.waiting import rows
from workers.runner import run_janitor

FAILED, READY = "podium.deployment.failed.v1", "podium.deployment.ready.v1"
AGENTS, VERSIONS, PROMOTES_AT_ONCE, ROUNDS = 4, 8, 64, 6


async def both_ways(sessions: Sessions) -> bool:
    """Whether verdicts have set a deployment Failed, and another one Ready again."""
    types = [row.type for row in await rows(sessions, "SELECT type FROM outbox")]
    return FAILED in types and types.count(READY) > AGENTS * VERSIONS


async def test_64_promotes_at_once_and_janitors_that_change_their_minds(settings: Settings, sessions: Sessions) -> None:
    """No deadlock occurs, promotes fail only because of a verdict, and all invariants hold afterwards."""
    eager = settings.model_copy(
        update={
            "probe_interval": timedelta(milliseconds=100),
            "probe_threshold": 1,
            "janitor_poll": timedelta(milliseconds=10),
        }
    )

    async def answers_at_random(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=random.choice([200, 500]))  # noqa: S311 - a test, not a secret

    async with AsyncExitStack() as stack:
        pod = await stack.enter_async_context(running_pod(answers_at_random))
        batch = [
            incoming(f"bot-{agent}", deployment_id=f"{agent}-{version}", acp_url=pod.url)
            for agent in range(AGENTS)
            for version in range(VERSIONS)
        ]
        await in_transaction(sessions, lambda session: register_batch(session, batch))
        agents = {row.name: row.id for row in await rows(sessions, "SELECT name, id FROM agents")}
        patient = settings.model_copy(update={"lock_timeout": timedelta(seconds=60)})
        engine = make_engine(patient, application_name="promotes", pool_size=PROMOTES_AT_ONCE)
        stack.push_async_callback(engine.dispose)
        promoting = Sessions(engine)

        async def promoted(number: int) -> bool:
            agent = number % AGENTS
            target = f"{agent}-{random.randrange(VERSIONS)}"  # noqa: S311 - as above
            caller = Caller(actor="amy")
            try:
                await in_transaction(
                    promoting, lambda session: promote(session, agents[f"bot-{agent}"], target, caller)
                )
            except DeploymentNotReady:
                return False
            return True

        with capture_logs() as logs:
            for janitor in (eager, eager):
                await stack.enter_async_context(working(run_janitor, janitor))
            done = rounds = 0
            async with asyncio.timeout(60):
                while rounds < ROUNDS or not await both_ways(sessions):
                    done += sum(await asyncio.gather(*map(promoted, range(PROMOTES_AT_ONCE))))
                    rounds += 1
            await stack.aclose()
        assert done > 0
        assert not [entry for entry in logs if "deadlock" in str(entry)]
    await in_transaction(sessions, assert_invariants)
