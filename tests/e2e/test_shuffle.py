"""Two workers and a real broker: repeated deliveries in any order give the state that the rules require."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractConnection
from sqlalchemy import text

from contracts import topology
from services.cancellation import background_task
from services.settings import Settings
from services.storage.database import Sessions
from tests.support.broker import Consumer, a_consumer, ready_messages
from tests.support.invariants import assert_invariants
from tests.support.processes import worker_process
from tests.support.reference_model.comparison import assert_matches
from tests.support.shuffle import FRESH_SEED, POLICIES, Shuffle
from tests.support.waiting import eventually, rows

LOCKED_SECONDS = 0.3


@pytest.mark.parametrize("seed", [1, FRESH_SEED])
async def test_shuffled_deliveries_to_two_workers_match_the_model(
    broker: AbstractConnection, sessions: Sessions, settings: Settings, tmp_path: Path, seed: int
) -> None:
    """G3 and G14: each message 1 to 3 times, in random order; rows and ledger match, events are in order."""
    stage = Stage(broker, sessions, settings, tmp_path)
    async with delivered(stage, seed) as delivery:
        pass
    await compare(stage, delivery)


async def test_shuffled_deliveries_end_as_the_model_says_while_agents_are_locked(
    broker: AbstractConnection, sessions: Sessions, settings: Settings, tmp_path: Path
) -> None:
    """G3 and G53: another session locks one agent after another, so that its messages are deferred."""
    stage = Stage(broker, sessions, settings, tmp_path)
    async with (
        background_task(lock_in_turn(sessions), name="locks"),
        delivered(stage, random.getrandbits(32)) as delivery,
    ):
        pass
    # Copies of decided messages can still have been deferred when the workers stopped.
    async with worker_process(settings, tmp_path, "registrar"):

        async def drained() -> bool:
            return await ready_messages(broker, topology.REGISTRATIONS_QUEUE) == 0

        await eventually(drained, "the queue is empty")
    await compare(stage, delivery)
    assert "registrar.deferred" in logs_of(tmp_path)


def logs_of(folder: Path) -> str:
    """The logs of all workers."""
    return "".join(path.read_text() for path in folder.glob("worker-*.log"))


async def lock_in_turn(sessions: Sessions) -> None:
    """Lock an agent for longer than a batch waits, again and again."""
    for name in cycle(POLICIES):
        async with sessions() as session, session.begin():
            await session.execute(text("SELECT FROM agents WHERE name = :name FOR UPDATE"), {"name": name})
            await asyncio.sleep(LOCKED_SECONDS)


@dataclass(frozen=True)
class Stage:
    """The servers, and where the workers write their logs."""

    broker: AbstractConnection
    sessions: Sessions
    settings: Settings
    folder: Path


@dataclass(frozen=True)
class Delivery:
    """A shuffle that was delivered, and the consumer of its events."""

    seed: int
    shuffle: Shuffle
    consumer: Consumer


@asynccontextmanager
async def delivered(stage: Stage, seed: int) -> AsyncIterator[Delivery]:
    """A shuffle that was delivered to two workers, all of whose messages are decided and events published."""
    broker, sessions = stage.broker, stage.sessions
    shuffle = Shuffle(random.Random(seed))  # noqa: S311 - a reproducible order, not a secret
    shuffle.fill()
    consumer = await a_consumer(broker)
    async with (
        worker_process(stage.settings, stage.folder, "registrar", PODIUM_BATCH_SIZE="7"),
        worker_process(stage.settings, stage.folder, "registrar relay", PODIUM_BATCH_SIZE="50"),
    ):
        channel = await broker.channel(on_return_raises=True)
        exchange = await channel.get_exchange(topology.REGISTRATIONS_EXCHANGE)
        for batch in shuffle.deliveries():
            envelopes = [incoming.envelope for incoming in batch if incoming.envelope is not None]
            await asyncio.gather(*(exchange.publish(Message(each.body), each.routing_key) for each in envelopes))

        async def decided_and_published() -> bool:
            decided = await rows(sessions, "SELECT 1 FROM registrations")
            waiting = await rows(sessions, "SELECT 1 FROM outbox WHERE published_at IS NULL")
            # The last deliveries can be repetitions, which decide nothing.
            left = await ready_messages(broker, topology.REGISTRATIONS_QUEUE)
            return len(decided) == len(shuffle.messages) and not waiting and not left

        await eventually(decided_and_published, "every message decided and every event published", seconds=60)
    yield Delivery(seed, shuffle, consumer)


async def compare(stage: Stage, delivery: Delivery) -> None:
    """Compare the outcome with the model."""
    broker, sessions, shuffle = stage.broker, stage.sessions, delivery.shuffle
    assert await ready_messages(broker, topology.REGISTRATIONS_QUEUE) == 0
    assert await ready_messages(broker, topology.PARKED_QUEUE) == 0
    async with sessions() as session:
        try:
            await assert_matches(session, shuffle.messages)
            await assert_invariants(session)
        except AssertionError as difference:
            difference.add_note(f"Run it again with FRESH_SEED={delivery.seed}.")
            raise
    published = {(row.source, row.sequence) for row in await rows(sessions, _EVENTS)}
    assert {(event.source, int(event.sequence)) for event in delivery.consumer.once()} == published


_EVENTS = "SELECT '/podium/agents/' || agent_id AS source, sequence FROM outbox"
