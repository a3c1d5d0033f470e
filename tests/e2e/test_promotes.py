"""Two API processes and a relay: many promotes at the same time."""

import asyncio
import random
from pathlib import Path
from typing import Any

import aiohttp
from aio_pika.abc import AbstractConnection

from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.support.broker import a_consumer
from tests.support.factories import incoming
from tests.support.processes import worker_process
from tests.support.waiting import rows

DEPLOYMENTS = [f"v-{number}" for number in range(50)]
PROMOTES = 200


async def fifty_ready(sessions: Sessions) -> str:
    """The id of an agent with fifty Ready deployments, the first in production."""
    batch = [incoming("bot", deployment_id=each) for each in DEPLOYMENTS]
    await in_transaction(sessions, lambda session: register_batch(session, batch))
    (agent,) = await rows(sessions, "SELECT id FROM agents")
    return str(agent.id)


async def promote(
    client: aiohttp.ClientSession, url: str, agent_id: str, deployment_id: str, **headers: str
) -> tuple[int, dict[str, Any], int]:
    """Promote; returns status, body and `x-podium-generation`."""
    address = f"{url}/agents/{agent_id}/deployments/{deployment_id}/promote"
    async with client.post(address, headers=headers) as response:
        return (
            response.status,
            await response.json(content_type=None),
            int(response.headers.get("x-podium-generation", 0)),
        )


async def test_two_hundred_promotes_at_once_all_succeed(
    broker: AbstractConnection,
    sessions: Sessions,
    settings: Settings,
    two_apis: list[str],
    client: aiohttp.ClientSession,
    tmp_path: Path,
) -> None:
    """Without If-Match every promote answers 200, one deployment serves, and each generation has its one event."""
    consumer = await a_consumer(broker)
    agent_id = await fifty_ready(sessions)
    targets = [DEPLOYMENTS[number % len(DEPLOYMENTS)] for number in range(PROMOTES)]
    random.shuffle(targets)
    async with worker_process(settings, tmp_path, "relay"):
        answers = await asyncio.gather(
            *(promote(client, two_apis[number % 2], agent_id, target) for number, target in enumerate(targets))
        )
        assert [status for status, _, _ in answers] == [200] * PROMOTES
        (agent,) = await rows(sessions, "SELECT generation, event_seq, production_deployment_id AS pointer FROM agents")
        production = await rows(sessions, "SELECT id FROM deployments WHERE is_production")
        assert [row.id for row in production] == [agent.pointer]
        ledger = await rows(
            sessions, "SELECT generation, to_deployment_id AS target FROM promotions ORDER BY generation"
        )
        assert [row.generation for row in ledger] == list(range(1, agent.generation + 1))
        # Each response has the generation at which its own target serves.
        served = {row.generation: row.target for row in ledger}
        assert all(served[generation] == body["id"] for _, body, generation in answers)

        async with asyncio.timeout(20):
            while len(consumer.events) < agent.event_seq:
                await asyncio.sleep(0.02)
    assert [int(event.sequence) for event in consumer.once()] == list(range(1, agent.event_seq + 1))
    promoted = [event for event in consumer.once() if event.type == "podium.deployment.promoted.v1"]
    assert [(event.generation, event.subject) for event in promoted] == list(served.items())


async def test_of_two_hundred_promotes_at_one_generation_one_wins(
    sessions: Sessions, two_apis: list[str], client: aiohttp.ClientSession
) -> None:
    """With the same If-Match, promotes of the winner get 200 and all others 412; one cutover happens."""
    agent_id = await fifty_ready(sessions)
    targets = [DEPLOYMENTS[1 + number % (len(DEPLOYMENTS) - 1)] for number in range(PROMOTES)]
    answers = await asyncio.gather(
        *(
            promote(client, two_apis[number % 2], agent_id, target, **{"If-Match": '"1"'})
            for number, target in enumerate(targets)
        )
    )
    (agent,) = await rows(sessions, "SELECT generation, production_deployment_id AS pointer FROM agents")
    assert agent.generation == 2
    expected = [200 if target == agent.pointer else 412 for target in targets]
    assert [status for status, _, _ in answers] == expected
    assert len(await rows(sessions, "SELECT 1 FROM promotions")) == 2
    assert len(await rows(sessions, "SELECT 1 FROM outbox WHERE type = 'podium.deployment.promoted.v1'")) == 2
