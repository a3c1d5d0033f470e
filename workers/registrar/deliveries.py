"""Deliveries of the registrations queue: the registrar's consumers, and the bounds of what they hold in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from types import TracebackType
from typing import Self

import structlog
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import AMQPConnectionError, AMQPError
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.schemas import QueueType

from contracts.messages import REGISTRATION_MAX_BYTES
from contracts.topology import REGISTRATIONS_QUEUE
from services.cancellation import lost_as
from services.settings import Settings
from services.tls import broker_url
from workers.amqp.buffer import DeliveryBuffer
from workers.amqp.connection import CLOSE_SECONDS, CONNECT_SECONDS, connected, with_heartbeat
from workers.retry import CONNECTION_LOST, at_most, ended

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
async def consuming(settings: Settings, buffer: DeliveryBuffer) -> AsyncIterator["asyncio.Task[None]"]:
    """A task that moves deliveries into the buffer, on its own connection, with which the buffer is closed."""
    broker = RabbitBroker(
        with_heartbeat(broker_url(settings)),
        timeout=CONNECT_SECONDS,
        on_close=[buffer.close],
        default_channel=Channel(prefetch_count=prefetch_of(settings)),
        ack_policy=AckPolicy.MANUAL,
        logger=None,
    )
    queue = RabbitQueue(REGISTRATIONS_QUEUE, queue_type=QueueType.QUORUM, durable=True, declare=False)
    subscriber = broker.subscriber(queue, ack_policy=AckPolicy.MANUAL)

    async def read() -> None:
        """Read every delivery, in order: an acknowledgement includes all earlier deliveries of the channel."""
        last = 0
        async for message in subscriber:
            tag = message.raw_message.delivery_tag
            if tag != last + 1:
                raise AMQPConnectionError(f"Delivery {last + 1} was not read.")
            last = tag
            await _receive(message.raw_message, buffer)

    try:
        await _start(broker)
        reader = asyncio.create_task(read(), name="registrar.reader")
        reader.add_done_callback(buffer.close)
        try:
            yield reader
        finally:
            await ended(reader, CLOSE_SECONDS)
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
        self._queue: AbstractQueue | None = None
        self._consumer_tag: str | None = None
        self._retry_at = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def start(self) -> None:
        """Consume, unless it does already. A failure is logged, and a later call tries again."""
        if self._consumer_tag is not None or monotonic() < self._retry_at:
            return
        try:
            with lost_as(AMQPConnectionError(CONNECTION_LOST)):
                async with asyncio.timeout(2 * CONNECT_SECONDS):
                    queue = self._queue = self._queue or await self._open()
                    self._consumer_tag = await queue.consume(self._receive)
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
        if self._queue is not None and self._consumer_tag is not None:
            tag, self._consumer_tag = self._consumer_tag, None
            await at_most(CLOSE_SECONDS, self._queue.cancel(tag))

    async def _open(self) -> AbstractQueue:
        connection = await self._stack.enter_async_context(connected(self._url))
        channel = await connection.channel()
        channel.close_callbacks.add(self._buffer.close)
        await channel.set_qos(prefetch_count=SECOND_PREFETCH)
        return await channel.get_queue(REGISTRATIONS_QUEUE)

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        await _receive(message, self._buffer)


async def _receive(message: AbstractIncomingMessage, buffer: DeliveryBuffer) -> None:
    """Put the message into the buffer, unless it is too large: the broker dead-letters it, and the drainer parks it."""
    if len(message.body) > REGISTRATION_MAX_BYTES:
        await message.reject(requeue=False)
    else:
        buffer.put(message)


async def _start(broker: RabbitBroker) -> None:
    try:
        await broker.connect()  # has its own timeout; cancelling it would leave it running
        async with asyncio.timeout(CONNECT_SECONDS):
            await broker.start()
    except AMQPError:
        raise
    except (OSError, RuntimeError) as error:
        raise AMQPConnectionError(f"The broker cannot be used: {error or type(error).__name__}") from error
