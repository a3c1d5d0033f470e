"""A server hangs: its connections stay open, the kernel accepts new ones, and no response arrives."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import SecretStr

from podium.servers import PrivateServer
from tests.chaos.callers import Callers, callers_of
from tests.chaos.size import SIZE
from tests.chaos.system import System, freeze, thaw
from tests.chaos.traffic import all_events_in_order, pods_of, until_quiet
from tests.support.factories import a_body, incoming
from tests.support.invariants import assert_invariants
from tests.support.waiting import eventually, rows

# More than the database connections of an API process, so that some requests wait for a connection.
AT_ONCE = 30
MESSAGES = 100


@asynccontextmanager
async def frozen(server: PrivateServer) -> AsyncIterator[None]:
    """Freeze the server inside the context."""
    freeze(server)
    try:
        yield
    finally:
        thaw(server)


async def call_everything(callers: Callers, agent: dict[str, Any]) -> None:
    """Send reads, promotes, registrations, rollbacks and RPC calls concurrently."""
    path = f"/agents/{agent['id']}"
    calls = [
        partial(callers.call, "GET", path),
        partial(callers.call, "GET", "/agents"),
        partial(callers.call, "POST", f"{path}/deployments/v1/promote"),
        partial(callers.call, "POST", f"{path}/deployments/v2/promote"),
        partial(callers.call, "POST", f"{path}/rollback"),
        partial(callers.call, "POST", f"{path}/rpc", {"jsonrpc": "2.0", "method": "any", "id": 1}),
        partial(callers.call, "GET", "/health/ready"),
    ]
    bodies = [a_body(f"caller-{number}", deployment_id=f"c-{number}") for number in range(AT_ONCE)]
    running = [calls[number % len(calls)]() for number in range(AT_ONCE)]
    await asyncio.gather(*running, *(callers.call("POST", "/agents/register", body) for body in bodies))


async def test_requests_are_answered_in_time_while_the_database_is_frozen(system: System) -> None:
    """Every request gets a 503 with `retry-after` in time; afterwards work continues, and no change is incomplete.

    The server freezes during traffic, so that some transactions hang before their commit and some during it.
    """
    messages = [incoming(f"bot-{number}", deployment_id=f"b-{number}") for number in range(3 * MESSAGES)]
    variables = {"PODIUM_DATABASE_TIMEOUT": str(SIZE.database_timeout)}
    async with callers_of(system, **variables) as callers, pods_of(system) as pods:
        _, agent = await _two_versions(callers)
        await pods.publish(messages[:MESSAGES])
        traffic = asyncio.create_task(callers.until(SIZE.server_frozen, agent))
        async with frozen(system.servers.postgres):
            await pods.publish(messages[MESSAGES : 2 * MESSAGES])
            await traffic
            callers.answers.clear()
            await call_everything(callers, agent)
            assert set(callers.answers) == {503}
            assert (await callers.call("GET", "/health/live"))[0] == 200

        async def promoted() -> bool:
            return (await callers.call("POST", f"/agents/{agent['id']}/deployments/v2/promote"))[0] == 200

        await eventually(promoted, "a promote after the thaw")
        callers.answers.clear()
        await callers.promote_back_and_forth(agent)
        await pods.publish(messages[2 * MESSAGES :])
        assert set(callers.answers) == {200}
        await eventually(partial(_all_decided, system), "every message decided", seconds=SIZE.patience)
        over_http = "SELECT 1 FROM registrations WHERE agent_name NOT LIKE 'bot-%'"
        await until_quiet(system, len(messages) + len(await rows(system.sessions, over_http)))
        print(f"slowest answer {callers.slowest:.1f} s")  # noqa: T201 - figures
    assert not await rows(system.sessions, "SELECT 1 FROM parked")
    async with system.sessions() as session:
        await assert_invariants(session)
    await all_events_in_order(system)


async def test_a_frozen_broker_stops_no_promote(system: System) -> None:
    """Reads and promotes succeed; announcements and events wait, and all of them arrive afterwards."""
    messages = [incoming(f"bot-{number}", deployment_id=f"b-{number}") for number in range(3 * MESSAGES)]
    short_heartbeat = replace(
        system,
        settings=system.settings.model_copy(
            update={"amqp_url": SecretStr(f"{system.servers.rabbitmq.url}?heartbeat={SIZE.heartbeat}")}
        ),
    )
    async with callers_of(short_heartbeat) as callers, pods_of(system) as pods:
        _, agent = await _two_versions(callers)
        await pods.publish(messages[:MESSAGES])
        async with frozen(system.servers.rabbitmq):
            publishing = asyncio.create_task(pods.publish(messages[MESSAGES : 2 * MESSAGES]))
            await callers.until(SIZE.broker_frozen, agent)
            for worker in ("registrar", "relay", "drainer"):
                await system.until_logged(f"{worker}.disconnected", server="RabbitMQ")
            assert Counter(callers.answers) == {200: len(callers.answers)}
            assert await rows(system.sessions, "SELECT 1 FROM outbox WHERE published_at IS NULL")
            assert (await callers.call("GET", "/health/ready"))[0] == 200
        await publishing
        await pods.publish(messages[2 * MESSAGES :])
        await until_quiet(system, len(messages) + 2)
    assert not await rows(system.sessions, "SELECT 1 FROM parked")
    await all_events_in_order(system)


async def _two_versions(callers: Callers) -> tuple[int, Any]:
    """Register an agent with v1 in production and v2 as a preview."""
    await callers.call("POST", "/agents/register", a_body("bot", deployment_id="v1"))
    return await callers.call("POST", "/agents/register", a_body("bot", deployment_id="v2"))


async def _all_decided(system: System) -> bool:
    decided = await rows(system.sessions, "SELECT 1 FROM registrations WHERE agent_name LIKE 'bot-%'")
    return len(decided) == 3 * MESSAGES
