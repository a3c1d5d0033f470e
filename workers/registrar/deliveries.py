"""Deliveries of the registrations queue: the registrar's consumers, and the bounds of what they hold in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from types import TracebackType
from typing import Self

import structlog
from aio_pika.exceptions import AMQPConnectionError, AMQPError
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.schemas import QueueType

from contracts.messages import REGISTRATION_MAX_BYTES
from contracts.topology import REGISTRATIONS_QUEUE
from services.cancellation import lost_as
from services.settings import Settings
from services.tls import broker_url
from workers.amqp.buffer import DeliveryBuffer
from workers.amqp.connection import CLOSE_SECONDS, CONNECT_SECONDS, connected, with_heartbeat
from workers.amqp.consumer import Consumer
from workers.retry import CONNECTION_LOST, at_most

# One batch in its transaction, and the next one already delivered.
PREFETCH_BATCHES = 2
# RabbitMQ bounds the number of delivered messages only: with the largest announcement, this bounds their bytes.
PREFETCH_MAX_BYTES = 32 * 1024 * 1024
MAX_PREFETCH = PREFETCH_MAX_BYTES // REGISTRATION_MAX_BYTES
# More messages while deferred ones fill the first prefetch.
SECOND_PREFETCH = 1000
SECOND_RETRY_SECONDS = 5.0

log = structlog.get_logger(__name__)


def prefetch_of(settings: Settings) -> int:
    """How many messages RabbitMQ delivers to a registrar before it acknowledges one."""
    return min(settings.batch_size * PREFETCH_BATCHES, MAX_PREFETCH)


@asynccontextmanager
async def consuming(settings: Settings, buffer: DeliveryBuffer) -> AsyncIterator[Consumer]:
    """A consumer that has started, on its own connection, with which the buffer is closed."""
    broker = RabbitBroker(
        with_heartbeat(broker_url(settings)),
        timeout=CONNECT_SECONDS,
        default_channel=Channel(prefetch_count=prefetch_of(settings)),
        logger=None,
    )
    queue = RabbitQueue(REGISTRATIONS_QUEUE, queue_type=QueueType.QUORUM, durable=True, declare=False)
    try:
        consumer = await _start(broker, queue, buffer)
        try:
            yield consumer
        finally:
            await consumer.stop()
    finally:
        await at_most(CLOSE_SECONDS, broker.stop())


class SecondConsumer:
    """Moves more deliveries into the buffer while deferred messages fill the prefetch of the first consumer.

    It has its own connection, which is opened when it is first needed, and with which the buffer is closed.
    """

    def __init__(self, settings: Settings, buffer: DeliveryBuffer) -> None:
        self._url = broker_url(settings)
        self._buffer = buffer
        self._stack = AsyncExitStack()
        self._consumer: Consumer | None = None
        self._retry_at = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def start(self) -> None:
        """Consume, unless it does already. A failure is logged, and a later call tries again."""
        if self._consumer is not None and self._consumer.is_consuming:
            return
        if monotonic() < self._retry_at:
            return
        try:
            with lost_as(AMQPConnectionError(CONNECTION_LOST)):
                async with asyncio.timeout(2 * CONNECT_SECONDS):
                    self._consumer = self._consumer or await self._open()
                    await self._consumer.start()
            log.info("Consuming more registrations beside deferred ones.", action="registrar.second_consumer")
        except (AMQPError, OSError) as error:
            self._retry_at = monotonic() + SECOND_RETRY_SECONDS
            log.warning(
                "Could not open a second consumer; deferred messages may delay others.",
                action="registrar.second_consumer_failed",
                error=f"{type(error).__name__}: {error}"[:300],
            )

    async def stop(self) -> None:
        """Stop the deliveries; those already delivered stay in the buffer."""
        if self._consumer is not None:
            await self._consumer.stop()

    async def _open(self) -> Consumer:
        connection = await self._stack.enter_async_context(connected(self._url))
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=SECOND_PREFETCH)
        return await Consumer.of(
            await channel.get_queue(REGISTRATIONS_QUEUE), self._buffer, max_bytes=REGISTRATION_MAX_BYTES
        )


async def _start(broker: RabbitBroker, queue: RabbitQueue, buffer: DeliveryBuffer) -> Consumer:
    try:
        await broker.connect()  # has its own timeout; cancelling it would leave it running
        async with asyncio.timeout(CONNECT_SECONDS):
            await broker.start()
            consumer = await Consumer.of(await broker.declare_queue(queue), buffer, max_bytes=REGISTRATION_MAX_BYTES)
            await consumer.start()
    except AMQPError:
        raise
    except (OSError, RuntimeError) as error:
        raise AMQPConnectionError(f"The broker cannot be used: {error or type(error).__name__}") from error
    return consumer
