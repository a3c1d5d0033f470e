"""A consumer of events: prints each event once and in order, also if it is redelivered.

PODIUM_AMQP_URL=amqp://... python -m examples.consumer
"""

import asyncio
import os

from faststream import AckPolicy, FastStream
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue
from faststream.rabbit.schemas import QueueType

from contracts.events import CloudEvent
from contracts.topology import EVENTS_EXCHANGE

broker = RabbitBroker(os.environ.get("PODIUM_AMQP_URL"), logger=None)
exchange = RabbitExchange(EVENTS_EXCHANGE, type=ExchangeType.TOPIC, durable=True, declare=False)
queue = RabbitQueue("example.consumer", routing_key="#", queue_type=QueueType.QUORUM, durable=True)
last_sequence: dict[str, str] = {}  # a real consumer stores this together with its own state


@broker.subscriber(queue, exchange, ack_policy=AckPolicy.NACK_ON_ERROR)
async def handle(message: RabbitMessage) -> None:
    """Drop events seen before. Sequences only grow, and their text order equals numeric order."""
    event = CloudEvent.model_validate_json(message.body)
    if event.sequence <= last_sequence.get(event.source, ""):
        return
    last_sequence[event.source] = event.sequence
    print(f"{int(event.sequence):>3}  generation {event.generation}  {event.type}  {event.subject}", flush=True)  # noqa: T201 - its output


if __name__ == "__main__":
    asyncio.run(FastStream(broker, logger=None).run())
