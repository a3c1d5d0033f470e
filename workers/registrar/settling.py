"""Settling: deciding messages, acknowledging them after the commit, and sending the requested replies."""

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from aio_pika.exceptions import AMQPConnectionError, AMQPError, ChannelInvalidStateError

from services.cancellation import lost_as
from services.domain.announcement import Announcement, Duplicate
from services.registration.batch import Decided, Incoming, read_message
from services.registration.parked import Envelope
from services.registration.signatures import require_signature
from workers.amqp.delivery import Delivery
from workers.metrics import WorkerMetrics
from workers.registrar.batches import Decider
from workers.registrar.deferred import DeferredMessages
from workers.registrar.replies import Replies
from workers.registrar.spans import BatchSpans, traceparent_of
from workers.retry import CONNECTION_LOST

if TYPE_CHECKING:
    from services.tracing.tracer import Tracer

# An acknowledgement is one small frame: a broker that does not accept it within this time is considered lost.
ACKNOWLEDGE_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Acknowledgements:
    """Acknowledges decided messages, and counts those that could not be acknowledged."""

    def __init__(self) -> None:
        self._lost = 0

    async def send(self, messages: Sequence[Delivery], *, multiple: bool) -> None:
        """Acknowledge these messages; with `multiple`, also all earlier messages of their channels, in one frame."""
        ends = {id(message.channel): message for message in messages}.values() if multiple else messages
        try:
            with lost_as(AMQPConnectionError(CONNECTION_LOST)):
                async with asyncio.timeout(ACKNOWLEDGE_SECONDS):
                    for message in ends:
                        await message.acknowledge(multiple=multiple)
        except (ChannelInvalidStateError, AMQPError, OSError) as error:
            self._lost += len(messages)
            log.warning(
                "Could not acknowledge decided messages; they will be redelivered as duplicates.",
                action="registrar.ack_lost",
                error=type(error).__name__,
                messages_since_start=self._lost,
            )


@dataclass(frozen=True, slots=True)
class Records:
    """What all settlers of a registrar share: the acknowledgements and the metrics."""

    acknowledgements: Acknowledgements
    metrics: WorkerMetrics


class Settler:
    """Settles messages of one connection; defers those of locked agents."""

    def __init__(
        self,
        decider: Decider,
        records: Records,
        deferred: DeferredMessages,
        replies: Replies,
        *,
        signed_with: str | None = None,
        tracer: "Tracer | None" = None,
    ) -> None:
        """With a secret key in `signed_with`, every message must be signed with the key of its agent."""
        self._tracer = tracer
        self._signed_with = signed_with
        self._decider = decider
        self._records = records
        self._deferred = deferred
        self._replies = replies

    async def settle(self, messages: Sequence[Delivery], stop: asyncio.Event) -> bool:
        """Decide a batch, acknowledge it and send the requested replies; False if `stop` was set before a decision."""
        if not messages:
            return True
        spans = None if self._tracer is None else BatchSpans(self._tracer, messages)
        traceparents = map(traceparent_of, messages) if spans is None else spans.traceparents
        batch = [
            _incoming(message, traceparent, self._signed_with)
            for message, traceparent in zip(messages, traceparents, strict=True)
        ]
        began = perf_counter()
        outcomes = await self._decider.decide(batch, stop)
        if outcomes is None:
            return False
        results = list(zip(messages, batch, outcomes, strict=True))
        self._deferred.defer([message for message, _, outcome in results if outcome is None])
        settled = [(message, incoming, outcome) for message, incoming, outcome in results if outcome is not None]
        if settled:
            counts = _outcomes([decided for _, _, decided in settled])
            age = _oldest_age_seconds([incoming for _, incoming, _ in settled])
            self._records.metrics.batch_decided(counts, perf_counter() - began, age)
            self._records.metrics.agents.registered([decided for _, _, decided in settled])
            await self._conclude(settled)
        if spans is not None:
            spans.end(batch, outcomes)
        return True

    async def _conclude(self, settled: Sequence[tuple[Delivery, Incoming, Decided]]) -> None:
        messages = [message for message, _, _ in settled]
        # Without deferred messages, all earlier messages of the channel are decided.
        await self._records.acknowledgements.send(messages, multiple=not self._deferred)
        self._deferred.settled(messages)
        redelivered = {incoming.content.message_id for message, incoming, _ in settled if message.redelivered}
        _log_batch([incoming for _, incoming, _ in settled], [decided for _, _, decided in settled], redelivered)
        await self._replies.send(messages, [decided for _, _, decided in settled])


def _incoming(message: Delivery, traceparent: str | None, signed_with: str | None) -> Incoming:
    envelope = Envelope(message.routing_key, message.body, dict(message.headers))
    incoming = read_message(envelope, traceparent=traceparent)
    return incoming if signed_with is None else require_signature(signed_with, incoming)


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
