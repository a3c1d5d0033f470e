"""The registrar: messages on the registrations queue become agents and deployments, a micro-batch per transaction.

A message is acknowledged once the transaction that decided it is committed, never before; whatever was decided but
not acknowledged comes again and is a `Duplicate` then.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
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
from services.domain.announcement import Duplicate
from services.registration.batch import Decided, Incoming, read_message
from services.registration.parked import Envelope
from services.settings import Settings
from services.storage.database import Sessions
from workers.amqp.buffer import DeliveryBuffer
from workers.amqp.connection import CLOSE_SECONDS, CONNECT_SECONDS, LOST, with_heartbeat
from workers.amqp.decoding import read_anything
from workers.outage import Outage
from workers.registrar.batches import Decider
from workers.registrar.replies import Replies
from workers.retry import at_most, ended, pause

# One batch in the database and one on its way.
PREFETCH_BATCHES = 2
# An acknowledgement is one small frame: whoever does not take it within this time is as good as gone.
ACKNOWLEDGE_SECONDS = 5.0
# How often an idle registrar looks up; whatever happens wakes it sooner.
IDLE_SECONDS = 60.0
HINT = "Is it running, and did 'podium migrate' declare its queues?"

log = structlog.get_logger(__name__)


class Registrar:
    """Consumes registrations until told to stop; several of them, in any number of processes, share the work."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._decider = Decider(sessions, requires_probe=settings.ready_requires_probe)
        self._outage = Outage(action="registrar.disconnected", back="registrar.connected")
        self._acks_lost = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish what is in hand; survives the loss of both servers."""
        read_anything()
        while not stop.is_set():
            try:
                with lost_as(AMQPConnectionError(LOST)):
                    await self._work(stop)
            except Exception as error:  # noqa: BLE001 - whatever it was, nothing was acknowledged: it all comes again
                await pause(stop, self._outage.failed(error, hint=HINT))

    async def _work(self, stop: asyncio.Event) -> None:
        """One connection's life: messages are taken and decided until it or the process ends.

        No lost connection interrupts a transaction: its messages come again on the next one, and are duplicates then.
        """
        hand = DeliveryBuffer()
        async with self._taking(hand) as reader, Replies(self._settings.amqp_url.get_secret_value()) as replies:
            while not (stop.is_set() or hand.closed):
                if batch := await self._next_batch(hand, stop):
                    await self._settle(batch, replies, stop)
            if hand.closed:
                raise AMQPConnectionError("The broker ended the connection or the subscription.")
            await ended(reader, CLOSE_SECONDS)
            while batch := hand.take(self._settings.batch_size):
                if not await self._settle(batch, replies, stop):
                    return

    @asynccontextmanager
    async def _taking(self, hand: DeliveryBuffer) -> AsyncIterator["asyncio.Task[None]"]:
        """A task that takes messages over on a connection of its own, which is not made again here once it is lost."""
        prefetch = self._settings.batch_size * PREFETCH_BATCHES
        broker = RabbitBroker(
            with_heartbeat(self._settings.amqp_url.get_secret_value()),
            timeout=CONNECT_SECONDS,
            on_close=[hand.close],
            default_channel=Channel(prefetch_count=prefetch),
            ack_policy=AckPolicy.MANUAL,
            logger=None,
        )
        queue = RabbitQueue(REGISTRATIONS_QUEUE, queue_type=QueueType.QUORUM, durable=True, declare=False)
        subscriber = broker.subscriber(queue, ack_policy=AckPolicy.MANUAL)

        async def read() -> None:
            """One after another, none left out: to acknowledge one is to acknowledge all before it."""
            last = 0
            async for message in subscriber:
                tag = message.raw_message.delivery_tag
                if tag != last + 1:
                    raise AMQPConnectionError(f"Delivery {last + 1} was not read.")
                last = tag
                hand.put(message.raw_message)

        try:
            await _started(broker)
            self._outage.over()
            log.info("Taking registrations.", action="registrar.started", prefetch=prefetch)
            reader = asyncio.create_task(read(), name="registrar.reader")
            reader.add_done_callback(hand.close)
            try:
                yield reader
            finally:
                await ended(reader, CLOSE_SECONDS)
        finally:
            await at_most(CLOSE_SECONDS, broker.stop())

    async def _next_batch(self, hand: DeliveryBuffer, stop: asyncio.Event) -> list[AbstractIncomingMessage]:
        """Messages that are there, up to a batch, after a moment for company; perhaps none."""
        hand.news.clear()
        if not hand.messages:
            await pause(stop, IDLE_SECONDS, hand.news)
        if hand.messages and len(hand.messages) < self._settings.batch_size:
            await asyncio.sleep(self._settings.batch_linger.total_seconds())
        return hand.take(self._settings.batch_size)

    async def _settle(self, messages: Sequence[AbstractIncomingMessage], replies: Replies, stop: asyncio.Event) -> bool:
        """Decide a batch, acknowledge it, answer whoever asked for an answer; whether it was decided."""
        batch = [_incoming(message) for message in messages]
        decided = await self._decider.decide(batch, stop)
        if decided is None:
            return False
        await self._acknowledge(messages)
        redelivered = [each for message, each in zip(messages, batch, strict=True) if message.redelivered]
        _tell(batch, decided, {each.content.message_id for each in redelivered})
        await replies.send(messages, decided)
        return True

    async def _acknowledge(self, messages: Sequence[AbstractIncomingMessage]) -> None:
        """Acknowledge a settled prefix: the last message of each channel stands for all before it there."""
        last_of_channel = {id(message.channel): message for message in messages}
        for channel, last in last_of_channel.items():
            try:
                with lost_as(AMQPConnectionError(LOST)):
                    async with asyncio.timeout(ACKNOWLEDGE_SECONDS):
                        await last.ack(multiple=True)
            except (ChannelInvalidStateError, AMQPError, OSError) as error:
                self._acks_lost += sum(id(message.channel) == channel for message in messages)
                log.warning(
                    "Decided messages could not be acknowledged; they come again as duplicates.",
                    action="registrar.ack_lost",
                    error=type(error).__name__,
                    messages_since_start=self._acks_lost,
                )


async def _started(broker: RabbitBroker) -> None:
    try:
        await broker.connect()  # has a timeout of its own; to cancel it would leave it running
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


def _tell(batch: Sequence[Incoming], decided: Sequence[Decided], redelivered: Collection[UUID | None]) -> None:
    outcomes = Counter(type(each.outcome).__name__ for each in decided)
    log.info("Decided a batch.", action="registrar.batch", messages=len(batch), outcomes=dict(outcomes))
    duplicates = {
        incoming.content.message_id
        for incoming, each in zip(batch, decided, strict=True)
        if isinstance(each.outcome, Duplicate)
    }
    if again := duplicates.intersection(redelivered):
        log.info(
            "Messages that were decided before came again, as after a lost acknowledgement.",
            action="registrar.came_again",
            message_ids=sorted(map(str, again)),
        )
