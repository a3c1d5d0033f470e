"""Pods that publish until the broker confirms, and checks of the events that a consumer receives."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice, pairwise
from typing import Any
from uuid import UUID

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractExchange
from aio_pika.exceptions import AMQPError

from contracts import topology
from contracts.events import CloudEvent
from services.registration.batch import Incoming
from tests.chaos.size import SIZE
from tests.chaos.system import EVENTS_QUEUE, System
from tests.support.broker import ready_messages
from tests.support.shuffle import Shuffle
from tests.support.waiting import eventually, rows

AT_ONCE = 100
CONFIRM_SECONDS = 5.0
RETRY_SECONDS = 0.2
AGENTS = 100
DEPLOYMENTS = 40
EXPECTED_EVENTS = "SELECT '/podium/agents/' || agent_id AS source, sequence FROM outbox"


class Pods:
    """Publishes messages as pods do: mandatory, and repeated with the same id until the broker confirms."""

    def __init__(self, system: System) -> None:
        self._url = system.settings.amqp_url.get_secret_value()
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None
        self.attempts: Counter[UUID | None] = Counter()

    async def publish(self, messages: Sequence[Incoming]) -> None:
        """Publish these messages; returns once all are confirmed."""
        remaining = iter(messages)
        while batch := list(islice(remaining, AT_ONCE)):
            while batch := await self._unconfirmed(batch):
                await self.close()
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """Close the connection; the next publish opens a new one."""
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            with suppress(AMQPError, OSError, RuntimeError):
                async with asyncio.timeout(1):
                    await connection.close()

    async def _unconfirmed(self, batch: Sequence[Incoming]) -> list[Incoming]:
        try:
            exchange = self._exchange or await self._open()
        except (AMQPError, OSError, RuntimeError):
            return list(batch)
        errors = await asyncio.gather(*(self._publish(each, exchange) for each in batch), return_exceptions=True)
        return [each for each, error in zip(batch, errors, strict=True) if error is not None]

    async def _publish(self, message: Incoming, exchange: AbstractExchange) -> None:
        assert message.envelope is not None
        self.attempts[message.content.message_id] += 1
        async with asyncio.timeout(CONFIRM_SECONDS):
            content = aio_pika.Message(message.envelope.body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await exchange.publish(content, message.envelope.routing_key, mandatory=True)

    async def _open(self) -> AbstractExchange:
        self._connection = await aio_pika.connect(self._url, timeout=CONFIRM_SECONDS)
        channel = await self._connection.channel(on_return_raises=True)
        self._exchange = await channel.get_exchange(topology.REGISTRATIONS_EXCHANGE, ensure=False)
        return self._exchange


@asynccontextmanager
async def pods_of(system: System) -> AsyncIterator[Pods]:
    """Pods whose connection is closed afterwards."""
    pods = Pods(system)
    try:
        yield pods
    finally:
        await pods.close()


def many(rng: random.Random, count: int) -> Shuffle:
    """Messages of up to a hundred agents: deployments, legacy addresses, foreign deployment ids, old times."""
    shuffle = Shuffle(rng)
    agents = [f"bot-{number}" for number in range(max(2, min(AGENTS, count // 50)))]
    while len(shuffle.messages) < count:
        name = rng.choice(agents)
        number = rng.randrange(DEPLOYMENTS)
        kind = rng.random()
        if kind < 0.04:
            shuffle.add(name, description=f"Described {number}.")
        elif kind < 0.06:
            shuffle.add(name, deployment_id=f"{rng.choice(agents)}.{number}")
        else:
            shuffle.add(name, deployment_id=f"{name}.{number}", registration_metadata={f"fact-{number % 3}": number})
    return shuffle


def repeated(rng: random.Random, messages: Sequence[Incoming]) -> list[Incoming]:
    """Each message one to three times, in random order."""
    arriving = [each for each in messages for _ in range(rng.randint(1, 3))]
    rng.shuffle(arriving)
    return arriving


def parts(items: Sequence[Any], count: int) -> Iterator[Sequence[Any]]:
    """Split a sequence into `count` parts of about the same size."""
    edges = [len(items) * number // count for number in range(count + 1)]
    return (items[start:end] for start, end in pairwise(edges))


async def all_events_in_order(system: System, *, seconds: float = 30) -> list[CloudEvent]:
    """Wait until all events are on the consumer's queue, and check that each agent's are in order and without gaps.

    Like a consumer, drops an event whose sequence is not greater than the last one of its source. An event that arrives
    too early then leaves a gap.
    """
    expected = {(row.source, row.sequence) for row in await rows(system.sessions, EXPECTED_EVENTS)}
    events: list[CloudEvent] = []
    accepted: dict[str, list[int]] = {}

    async def receive(message: Any) -> None:
        event = CloudEvent.model_validate_json(message.body)
        events.append(event)
        sequences = accepted.setdefault(event.source, [])
        if int(event.sequence) > (sequences[-1] if sequences else 0):
            sequences.append(int(event.sequence))

    async def complete() -> bool:
        return len(events) >= len(expected) and expected <= {(event.source, int(event.sequence)) for event in events}

    async with await aio_pika.connect(system.settings.amqp_url.get_secret_value()) as broker:
        queue = await (await broker.channel()).get_queue(EVENTS_QUEUE)
        await queue.consume(receive, no_ack=True)
        await eventually(complete, f"{len(expected)} events on the consumer's queue", seconds=seconds)
    for source, sequences in accepted.items():
        assert sequences == list(range(1, len(sequences) + 1)), f"events with a gap or out of order: {source}"
    assert {(source, each) for source, sequences in accepted.items() for each in sequences} == expected
    return events


async def until_quiet(system: System, messages: int, *, published: bool = True, seconds: float = SIZE.patience) -> None:
    """Wait until this many messages are decided, the queue is empty, and (if `published`) every event is published."""

    async def quiet() -> bool:
        (row,) = await rows(
            system.sessions,
            "SELECT (SELECT count(*) FROM registrations) AS decided, "
            "(SELECT count(*) FROM outbox WHERE published_at IS NULL) AS waiting",
        )
        if row.decided != messages or (published and row.waiting):
            return False
        return await waiting_in(system, topology.REGISTRATIONS_QUEUE) == 0

    await eventually(quiet, f"{messages} messages decided, every event published", seconds=seconds)


async def waiting_in(system: System, queue: str) -> int:
    """The number of messages in a queue that are ready for delivery."""
    async with await aio_pika.connect(system.settings.amqp_url.get_secret_value()) as broker:
        return await ready_messages(broker, queue)
