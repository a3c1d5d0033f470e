"""One server is unavailable: what still works, what waits, and that everything arrives afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest_asyncio

from tests.chaos.alarm import memory_alarm
from tests.chaos.callers import Callers, callers_of
from tests.chaos.size import SIZE
from tests.chaos.system import System
from tests.chaos.traffic import all_events_in_order, pods_of, until_quiet
from tests.support.factories import a_body, incoming
from tests.support.waiting import eventually, rows


@pytest_asyncio.fixture
async def callers(system: System) -> AsyncIterator[Callers]:
    """Clients of an API, with a worker process."""
    async with callers_of(system) as callers:
        yield callers


@asynccontextmanager
async def broker_down(system: System) -> AsyncIterator[None]:
    """Stop RabbitMQ inside the context."""
    await system.servers.rabbitmq.stop()
    yield
    await system.servers.rabbitmq.start()


async def test_the_api_works_while_the_broker_takes_nothing(system: System, callers: Callers) -> None:
    """During a memory alarm and without a broker, reads and promotes succeed; events arrive afterwards."""
    await system.servers.settled()
    for deployment in ("v1", "v2"):
        _, agent = await callers.call("POST", "/agents/register", a_body("bot", deployment_id=deployment))
    async with memory_alarm(system.servers.rabbitmq):
        await callers.until(SIZE.alarm, agent)
        assert await rows(system.sessions, "SELECT 1 FROM outbox WHERE published_at IS NULL")
    async with broker_down(system):
        await callers.until(SIZE.broker_down, agent)
        _, readiness = await callers.call("GET", "/health/ready")
        assert (readiness["parts"]["database"]["ok"], readiness["parts"]["broker"]["ok"]) == (True, False)
    assert set(callers.answers) == {200}
    (ledger,) = await rows(system.sessions, "SELECT generation FROM agents")
    await until_quiet(system, 2)
    events = await all_events_in_order(system)
    promoted = {event.generation for event in events if event.type == "podium.deployment.promoted.v1"}
    assert promoted == set(range(1, ledger.generation + 1))
    print(f"{len(callers.answers)} answers, all 200; {ledger.generation} generations published")  # noqa: T201 - figures


async def test_a_database_that_is_away_loses_nothing(system: System, callers: Callers) -> None:
    """Messages wait and are not parked; the API answers 503 in time, and /health/ready names the part that is down."""
    _, agent = await callers.call("POST", "/agents/register", a_body("bot", deployment_id="v1"))
    await callers.call("POST", "/agents/register", a_body("bot", deployment_id="v2"))
    messages = [incoming(f"bot-{number}", deployment_id=f"v-{number}") for number in range(300)]
    async with pods_of(system) as pods:
        await pods.publish(messages[:100])
        await system.servers.postgres.kill()
        callers.answers.clear()
        await pods.publish(messages[100:200])
        await callers.until(SIZE.database_down, agent)
        assert set(callers.answers) == {503}
        status, readiness = await callers.call("GET", "/health/ready")
        assert (status, readiness["parts"]["database"]["ok"], readiness["parts"]["broker"]["ok"]) == (503, False, True)
        assert (await callers.call("GET", "/health/live"))[0] == 200
        print(f"{len(callers.answers)} answers while the database was down")  # noqa: T201 - figures
        await system.servers.postgres.start()
        await pods.publish(messages[200:])
    await until_quiet(system, len(messages) + 2)
    assert not await rows(system.sessions, "SELECT 1 FROM parked")

    async def promoted() -> bool:
        return (await callers.call("POST", f"/agents/{agent['id']}/deployments/v2/promote"))[0] == 200

    await eventually(promoted, "a promote after the outage")
    await until_quiet(system, len(messages) + 2)
    await all_events_in_order(system)
