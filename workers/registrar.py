"""The registrar: messages on the registrations queue become agents and deployments, a micro-batch per transaction.

A message is acknowledged once the transaction that decided it is committed, never before; whatever was decided but
not acknowledged comes again and is a `Duplicate` then.
"""

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.schemas import QueueType

from contracts.fields import TRACEPARENT_PATTERN
from contracts.topology import REGISTRATIONS_QUEUE
from services.database import Sessions, in_transaction
from services.errors import Unavailable, Unprocessable
from services.parking import Envelope
from services.registration import Decided, Incoming, Unreadable, read_message, register_batch
from services.settings import Settings
from services.wake import Waker
from workers.pause import backoff, pause
from workers.replies import Replies

# One batch in the database and one on its way.
PREFETCH_BATCHES = 2

log = structlog.get_logger(__name__)


class Registrar:
    """Consumes registrations until told to stop; several of them, in any number of processes, share the work."""

    def __init__(self, settings: Settings, sessions: Sessions, waker: Waker) -> None:
        self._settings = settings
        self._sessions = sessions
        self._waker = waker
        self._arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish the batch in hand; survives the loss of both servers."""
        attempt = 0
        while not stop.is_set():
            try:
                await self._consume(stop)
            except Exception as error:  # noqa: BLE001 - whatever it was, nothing was acknowledged: it all comes again
                attempt += 1
                log.warning(
                    "The broker cannot be used; trying again.",
                    action="registrar.disconnected",
                    error=f"{type(error).__name__}: {error}"[:300],
                    hint="Is it running, and did 'podium migrate' declare its queues?",
                )
                await pause(stop, backoff(attempt))
            else:
                attempt = 0

    async def _consume(self, stop: asyncio.Event) -> None:
        """One connection: a reader takes messages over, and no lost connection interrupts this task, which decides."""
        url = self._settings.amqp_url.get_secret_value()
        prefetch = self._settings.batch_size * PREFETCH_BATCHES
        broker = RabbitBroker(
            url, default_channel=Channel(prefetch_count=prefetch), ack_policy=AckPolicy.MANUAL, logger=None
        )
        queue = RabbitQueue(REGISTRATIONS_QUEUE, queue_type=QueueType.QUORUM, durable=True, declare=False)
        subscriber = broker.subscriber(queue, ack_policy=AckPolicy.MANUAL)
        self._arrived = asyncio.Queue()

        async def read() -> None:
            async for message in subscriber:
                self._arrived.put_nowait(message.raw_message)

        async with broker, Replies(url) as replies:
            await broker.start()
            log.info("Taking registrations.", action="registrar.started", prefetch=prefetch)
            reader = asyncio.create_task(read(), name="registrar.reader")
            try:
                while not (stop.is_set() or reader.done()):
                    batch = await self._next_batch(stop, reader)
                    if batch:
                        await self._settle(batch, replies, stop)
            finally:
                reader.cancel()
                with suppress(asyncio.CancelledError):
                    await reader
        if not stop.is_set():
            raise ConnectionError("The broker ended the subscription.")

    async def _next_batch(self, stop: asyncio.Event, reader: "asyncio.Task[None]") -> list[AbstractIncomingMessage]:
        """Messages that are there, up to a batch, after a moment for company; none if there is a reason to stop."""
        first = asyncio.ensure_future(self._arrived.get())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait((first, stopping, reader), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if not first.done():
            first.cancel()
            return []
        if self._arrived.qsize() < self._settings.batch_size - 1:
            await asyncio.sleep(self._settings.batch_linger.total_seconds())
        batch = [first.result()]
        while len(batch) < self._settings.batch_size and not self._arrived.empty():
            batch.append(self._arrived.get_nowait())
        return batch

    async def _settle(self, messages: Sequence[AbstractIncomingMessage], replies: Replies, stop: asyncio.Event) -> None:
        """Decide a batch, acknowledge it, answer whoever asked for an answer."""
        decided = await self._decide([_incoming(message) for message in messages], stop)
        if decided is None:
            return
        self._waker.wake()
        await _acknowledge(messages)
        log.info("Decided a batch.", action="registrar.batch", messages=len(messages), outcomes=_counts(decided))
        await replies.send(messages, decided)

    async def _decide(self, batch: list[Incoming], stop: asyncio.Event) -> list[Decided] | None:
        """What became of each message; None if the process stops while the database is away (they come again)."""
        attempt = 0
        while True:
            try:
                return await in_transaction(self._sessions, lambda session: register_batch(session, batch))
            except Unavailable as error:
                attempt += 1
                log.warning(
                    "The database cannot be used; the batch is kept.",
                    action="registrar.database_away",
                    messages=len(batch),
                    reason=error.reason,
                )
                await pause(stop, backoff(attempt))
                if stop.is_set():
                    return None
            except Exception as error:  # noqa: BLE001 - whatever one message causes must not stop the others
                log.warning(
                    "The database refuses a batch; looking for the message that is to blame.",
                    action="registrar.batch_refused",
                    messages=len(batch),
                    error=f"{type(error).__name__}: {error}"[:300],
                )
                return await self._isolate(batch, error, stop)

    async def _isolate(self, batch: list[Incoming], error: Exception, stop: asyncio.Event) -> list[Decided] | None:
        """Halve the batch until what the database refuses stands alone, and park that: its neighbours are decided."""
        if len(batch) > 1:
            middle = len(batch) // 2
            earlier = await self._decide(batch[:middle], stop)
            later = await self._decide(batch[middle:], stop) if earlier is not None else None
            return earlier + later if earlier is not None and later is not None else None
        (poison,) = batch
        if isinstance(poison.content, Unreadable):
            raise error
        refused = Unreadable(Unprocessable(f"The database refuses this message: {type(error).__name__}."))
        return await self._decide([Incoming(refused, poison.envelope)], stop)


async def _acknowledge(messages: Sequence[AbstractIncomingMessage]) -> None:
    """Acknowledge a settled prefix: the last message of each channel stands for all before it there."""
    last_of_channel = {id(message.channel): message for message in messages}
    for message in last_of_channel.values():
        try:
            await message.ack(multiple=True)
        except (ChannelInvalidStateError, AMQPError, OSError) as error:
            log.warning(
                "Decided messages could not be acknowledged; they come again as duplicates.",
                action="registrar.ack_lost",
                error=type(error).__name__,
            )


def _incoming(message: AbstractIncomingMessage) -> Incoming:
    headers = dict(message.headers)
    traceparent = headers.get("traceparent")
    if not (isinstance(traceparent, str) and re.fullmatch(TRACEPARENT_PATTERN, traceparent)):
        traceparent = None
    return read_message(Envelope(message.routing_key or "", message.body, headers), traceparent=traceparent)


def _counts(decided: Sequence[Decided]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in decided:
        name = type(each.outcome).__name__
        counts[name] = counts.get(name, 0) + 1
    return counts
