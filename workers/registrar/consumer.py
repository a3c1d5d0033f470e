"""The registrar: decides the messages of the registrations queue in batches, one transaction per batch.

A message is acknowledged only after the transaction that decided it is committed. A message that was decided but not
acknowledged is redelivered, and its outcome is then `Duplicate`.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from time import perf_counter
from uuid import UUID

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import AMQPConnectionError, AMQPError, ChannelInvalidStateError
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.schemas import QueueType

from contracts.fields import TRACEPARENT_PATTERN
from contracts.topology import REGISTRATIONS_QUEUE
from services.cancellation import lost_as
from services.domain.announcement import Announcement, Duplicate
from services.registration.batch import Decided, Incoming, read_message
from services.registration.parked import Envelope
from services.settings import Settings
from services.storage.database import Sessions
from workers.amqp.buffer import DeliveryBuffer
from workers.amqp.connection import CLOSE_SECONDS, CONNECT_SECONDS, with_heartbeat
from workers.amqp.decoding import tolerate_invalid_properties
from workers.metrics import WorkerMetrics
from workers.registrar.batches import Decider
from workers.registrar.replies import Replies
from workers.retry import CONNECTION_LOST, Outage, at_most, ended, pause, run_with_retries

# One batch in its transaction, and the next one already delivered.
PREFETCH_BATCHES = 2
# An acknowledgement is one small frame: a broker that does not accept it within this time is considered lost.
ACKNOWLEDGE_SECONDS = 5.0
# The longest wait of an idle registrar. A delivery, a lost connection or the stop signal ends it earlier.
IDLE_SECONDS = 60.0
BROKER_HINT = "Check that RabbitMQ is running and that 'podium migrate' has declared the queues."

log = structlog.get_logger(__name__)


class Registrar:
    """Consumes registrations until it is stopped. Any number of registrars, in any number of processes, can run."""

    def __init__(self, settings: Settings, sessions: Sessions, metrics: WorkerMetrics | None = None) -> None:
        self._settings = settings
        self._metrics = metrics or WorkerMetrics()
        self._decider = Decider(sessions, requires_probe=settings.ready_requires_probe)
        self._outage = Outage(failure_action="registrar.disconnected", recovery_action="registrar.connected")
        self._metrics.watch("registrar", self._outage)
        self._acks_lost = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then decide the messages already received; reconnects after an outage."""
        tolerate_invalid_properties()
        await run_with_retries(stop, self._work, self._outage, hint=BROKER_HINT)

    async def _work(self, stop: asyncio.Event) -> None:
        """Decide messages on one connection until it is lost or `stop` is set.

        A lost connection does not interrupt a transaction: the broker redelivers its messages on the next connection,
        where they are duplicates.
        """
        buffer = DeliveryBuffer()
        async with self._consuming(buffer) as reader, Replies(self._settings.amqp_url.get_secret_value()) as replies:
            while not (stop.is_set() or buffer.closed):
                if batch := await self._next_batch(buffer, stop):
                    await self._settle(batch, replies, stop)
            if buffer.closed:
                raise AMQPConnectionError("The broker closed the connection or cancelled the consumer.")
            await ended(reader, CLOSE_SECONDS)
            while batch := buffer.take(self._settings.batch_size):
                if not await self._settle(batch, replies, stop):
                    return

    @asynccontextmanager
    async def _consuming(self, buffer: DeliveryBuffer) -> AsyncIterator["asyncio.Task[None]"]:
        """A task that moves deliveries into the buffer, on its own connection, with which the buffer is closed."""
        prefetch = self._settings.batch_size * PREFETCH_BATCHES
        broker = RabbitBroker(
            with_heartbeat(self._settings.amqp_url.get_secret_value()),
            timeout=CONNECT_SECONDS,
            on_close=[buffer.close],
            default_channel=Channel(prefetch_count=prefetch),
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
                buffer.put(message.raw_message)

        try:
            await _start(broker)
            self._outage.over()
            log.info("Consuming registrations.", action="registrar.started", prefetch=prefetch)
            reader = asyncio.create_task(read(), name="registrar.reader")
            reader.add_done_callback(buffer.close)
            try:
                yield reader
            finally:
                await ended(reader, CLOSE_SECONDS)
        finally:
            await at_most(CLOSE_SECONDS, broker.stop())

    async def _next_batch(self, buffer: DeliveryBuffer, stop: asyncio.Event) -> list[AbstractIncomingMessage]:
        """Wait for messages, then a short time for more of them; returns at most one batch, possibly an empty one."""
        buffer.changed.clear()
        if not buffer.messages:
            await pause(stop, IDLE_SECONDS, buffer.changed)
        if buffer.messages and len(buffer.messages) < self._settings.batch_size:
            await asyncio.sleep(self._settings.batch_linger.total_seconds())
        return buffer.take(self._settings.batch_size)

    async def _settle(self, messages: Sequence[AbstractIncomingMessage], replies: Replies, stop: asyncio.Event) -> bool:
        """Decide a batch, acknowledge it and send the requested replies; False if the batch was not decided."""
        batch = [_incoming(message) for message in messages]
        began = perf_counter()
        decided = await self._decider.decide(batch, stop)
        if decided is None:
            return False
        self._metrics.batch_decided(_outcomes(decided), perf_counter() - began, _oldest_age_seconds(batch))
        await self._acknowledge(messages)
        redelivered = [incoming for message, incoming in zip(messages, batch, strict=True) if message.redelivered]
        _log_batch(batch, decided, {incoming.content.message_id for incoming in redelivered})
        await replies.send(messages, decided)
        return True

    async def _acknowledge(self, messages: Sequence[AbstractIncomingMessage]) -> None:
        """Acknowledge decided messages: on each channel, acknowledging the last one includes all earlier ones."""
        last_of_channel = {id(message.channel): message for message in messages}
        for channel, last in last_of_channel.items():
            try:
                with lost_as(AMQPConnectionError(CONNECTION_LOST)):
                    async with asyncio.timeout(ACKNOWLEDGE_SECONDS):
                        await last.ack(multiple=True)
            except (ChannelInvalidStateError, AMQPError, OSError) as error:
                self._acks_lost += sum(id(message.channel) == channel for message in messages)
                log.warning(
                    "Could not acknowledge decided messages; they will be redelivered as duplicates.",
                    action="registrar.ack_lost",
                    error=type(error).__name__,
                    messages_since_start=self._acks_lost,
                )


async def _start(broker: RabbitBroker) -> None:
    try:
        await broker.connect()  # has its own timeout; cancelling it would leave it running
        async with asyncio.timeout(CONNECT_SECONDS):
            await broker.start()
    except AMQPError:
        raise
    except (OSError, RuntimeError) as error:
        raise AMQPConnectionError(f"The broker cannot be used: {error or type(error).__name__}") from error


def _incoming(message: AbstractIncomingMessage) -> Incoming:
    headers = dict(message.headers)
    traceparent = headers.get("traceparent")
    if not (isinstance(traceparent, str) and re.fullmatch(TRACEPARENT_PATTERN, traceparent)):
        traceparent = None
    return read_message(Envelope(message.routing_key or "", message.body, headers), traceparent=traceparent)


def _outcomes(decided: Sequence[Decided]) -> Counter[str]:
    return Counter(type(result.outcome).__name__ for result in decided)


def _oldest_age_seconds(batch: Sequence[Incoming]) -> float | None:
    """The age of the oldest registration by its own `registered_at`; None if no message of the batch has one."""
    times = [each.content.registered_at for each in batch if isinstance(each.content, Announcement)]
    named = [time for time in times if time is not None]
    return (datetime.now(UTC) - min(named)).total_seconds() if named else None


def _log_batch(batch: Sequence[Incoming], decided: Sequence[Decided], redelivered: Collection[UUID | None]) -> None:
    outcomes = dict(_outcomes(decided))
    log.info("Decided a batch.", action="registrar.batch", messages=len(batch), outcomes=outcomes)
    duplicates = {
        incoming.content.message_id
        for incoming, result in zip(batch, decided, strict=True)
        if isinstance(result.outcome, Duplicate)
    }
    if decided_before := duplicates.intersection(redelivered):
        log.info(
            "Messages were redelivered that were already decided, for example after a lost acknowledgement.",
            action="registrar.came_again",
            message_ids=sorted(map(str, decided_before)),
        )
