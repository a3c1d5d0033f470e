"""The broker, as pods and consumers use it."""

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from aio_pika import Message
from aio_pika.abc import AbstractConnection, AbstractQueue
from pydantic_core import from_json, to_json

from contracts import topology
from contracts.events import CloudEvent


async def publish(
    broker: AbstractConnection, body: Mapping[str, Any] | bytes, *, key: str | None = None, **properties: Any
) -> None:
    """Publish a registration as a pod does: mandatory and confirmed."""
    content = body if isinstance(body, bytes) else to_json(body)
    if key is None:
        key = topology.registration_key(from_json(content)["name"])
    channel = await broker.channel(on_return_raises=True)
    async with channel:
        exchange = await channel.get_exchange(topology.REGISTRATIONS_EXCHANGE, ensure=False)
        await exchange.publish(Message(content, **properties), key, mandatory=True)


class Consumer:
    """Stores all events that it receives from its own queue."""

    def __init__(self, queue: AbstractQueue) -> None:
        self.queue = queue
        self.events: list[CloudEvent] = []

    async def until(self, count: int = 1, *, type: str = "", seconds: float = 20) -> list[CloudEvent]:  # noqa: A002 - the attribute's name
        """All events of this type so far, as soon as there are this many."""
        async with asyncio.timeout(seconds):
            while len(found := [event for event in self.events if type in event.type]) < count:
                await asyncio.sleep(0.01)
        return found

    def once(self) -> list[CloudEvent]:
        """The events as an idempotent consumer handles them: dropped unless greater than the last of their source."""
        last: dict[str, str] = {}
        kept = []
        for event in self.events:
            if event.sequence > last.get(event.source, ""):
                last[event.source] = event.sequence
                kept.append(event)
        return kept


async def a_consumer(broker: AbstractConnection, binding: str = "#") -> Consumer:
    """A consumer, bound and ready."""
    channel = await broker.channel()
    queue = await channel.declare_queue(f"test.{uuid4().hex}", exclusive=True)
    await queue.bind(topology.EVENTS_EXCHANGE, binding)
    consumer = Consumer(queue)

    async def keep(message: Any) -> None:
        consumer.events.append(CloudEvent.model_validate_json(message.body))

    await queue.consume(keep, no_ack=True)
    return consumer


async def ready_messages(broker: AbstractConnection, queue: str) -> int:
    """The number of ready messages in a queue, without delivered and unacknowledged ones."""
    channel = await broker.channel()
    async with channel:
        declared = await channel.get_queue(queue)
        return declared.declaration_result.message_count or 0
