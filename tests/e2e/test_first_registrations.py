"""Many pods announce a new agent at the same time: to two workers with small and large batches, and over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio
from aio_pika.abc import AbstractConnection

from services.settings import Settings
from services.storage.database import Sessions
from tests.support.broker import a_consumer, publish, ready_messages
from tests.support.factories import a_body
from tests.support.processes import api_process, worker_process
from tests.support.waiting import eventually, rows

PODS = 50


@pytest_asyncio.fixture
async def podium(
    broker: AbstractConnection,  # noqa: ARG001 - declares the topology
    settings: Settings,
    tmp_path: Path,
) -> AsyncIterator[str]:
    """Two registrars with batches of 1 and of 50, a relay, and an API; yields the API's URL."""
    async with (
        api_process(settings, tmp_path) as url,
        worker_process(settings, tmp_path, "registrar", PODIUM_BATCH_SIZE="1"),
        worker_process(settings, tmp_path, "registrar relay", PODIUM_BATCH_SIZE="50"),
    ):
        yield url


async def announce(client: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> int:
    """Register over HTTP; returns the status."""
    async with client.post(f"{url}/agents/register", json=body) as response:
        return response.status


async def announced(
    broker: AbstractConnection, client: aiohttp.ClientSession, url: str, bodies: list[dict[str, Any]]
) -> None:
    """Send all announcements at the same time: every fifth over HTTP, the others over RabbitMQ."""
    over_http = bodies[::5]
    on_the_queue = [body for number, body in enumerate(bodies) if number % 5]
    statuses, _ = await asyncio.gather(
        asyncio.gather(*(announce(client, url, body) for body in over_http)),
        asyncio.gather(*(publish(broker, body) for body in on_the_queue)),
    )
    assert statuses == [200] * len(over_http)


async def test_fifty_versions_of_a_new_agent_are_one_agent_and_one_promotion(
    podium: str, broker: AbstractConnection, sessions: Sessions, client: aiohttp.ClientSession
) -> None:
    """Fifty first registrations with different ids: fifty Ready deployments, exactly one of them promoted, once."""
    consumer = await a_consumer(broker)
    await announced(broker, client, podium, [a_body("bot", deployment_id=f"v-{number}") for number in range(PODS)])
    await _decided(sessions, PODS)
    (agent,) = await rows(sessions, "SELECT id, event_seq, generation, production_deployment_id AS pointer FROM agents")
    ready = await rows(sessions, "SELECT id FROM deployments WHERE status = 'Ready'")
    assert len(ready) == PODS
    assert agent.generation == 1
    (promotion,) = await rows(sessions, "SELECT cause, to_deployment_id AS target FROM promotions")
    assert (promotion.cause, promotion.target) == ("first", agent.pointer)
    async with asyncio.timeout(20):
        while len(consumer.once()) < agent.event_seq:
            await asyncio.sleep(0.02)
    promoted = [event for event in consumer.once() if event.type == "podium.deployment.promoted.v1"]
    assert [event.subject for event in promoted] == [agent.pointer]


async def test_fifty_pods_of_one_version_are_one_row(
    podium: str, broker: AbstractConnection, sessions: Sessions, client: aiohttp.ClientSession
) -> None:
    """Fifty first registrations of one deployment: one row, one promotion, none refused."""
    await announced(broker, client, podium, [a_body("bot", deployment_id="v-1") for _ in range(PODS)])
    await _decided(sessions, PODS)
    assert [row.id for row in await rows(sessions, "SELECT id FROM deployments")] == ["v-1"]
    assert len(await rows(sessions, "SELECT 1 FROM agents")) == 1
    assert len(await rows(sessions, "SELECT 1 FROM promotions")) == 1
    outcomes = await rows(sessions, "SELECT DISTINCT outcome FROM registrations")
    assert {row.outcome for row in outcomes} <= {"Registered", "Stale"}
    assert not await rows(sessions, "SELECT 1 FROM parked")
    assert await ready_messages(broker, "podium.parked") == 0


async def _decided(sessions: Sessions, count: int) -> None:
    async def all_of_them() -> bool:
        return len(await rows(sessions, "SELECT 1 FROM registrations")) == count

    await eventually(all_of_them, f"{count} decided registrations")
