"""The spans of registrations from the queue.

Each message has a span in the trace of its pod, and below it one for the transaction that decided it. Attempts that
decide nothing have no spans: while an agent is locked or the database is away there are many. A batch of several has a
span of its own, to which those of its messages link, and which links to what published them
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/).
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from contracts.fields import TRACEPARENT_PATTERN
from contracts.topology import REGISTRATIONS_EXCHANGE, REGISTRATIONS_QUEUE
from services.domain.announcement import Announcement, Rejected
from services.registration.batch import Decided, Incoming
from services.tracing.attributes import agent_attributes
from workers.amqp.delivery import Delivery

if TYPE_CHECKING:
    from services.tracing.tracer import Span, Tracer

_NAME = f"process {REGISTRATIONS_QUEUE}"
_OPERATION: dict[str, str | int | bool] = {
    "messaging.system": "rabbitmq",
    "messaging.operation.name": "process",
    "messaging.operation.type": "process",
    "messaging.destination.template": REGISTRATIONS_QUEUE,
}


def traceparent_of(message: Delivery) -> str | None:
    """The valid `traceparent` in the headers of a message; None if there is none."""
    given = message.headers.get("traceparent")
    return given if isinstance(given, str) and re.fullmatch(TRACEPARENT_PATTERN, given) else None


class BatchSpans:
    """The spans of the messages of one batch, and of the batch."""

    def __init__(self, tracer: "Tracer", messages: Sequence[Delivery]) -> None:
        self._batch: Span | None = None
        if len(messages) > 1:
            published = [each for each in map(traceparent_of, messages) if each is not None]
            attributes = _OPERATION | {"messaging.batch.message_count": len(messages)}
            self._batch = tracer.start(_NAME, "consumer", attributes, links=published)
        self._messages = [self._start(tracer, message) for message in messages]

    @property
    def traceparents(self) -> list[str]:
        """The trace context of each message's span: what the message causes continues it."""
        return [span.traceparent for span in self._messages]

    def end(self, batch: Sequence[Incoming], decided: Sequence[Decided | None]) -> None:
        """End the spans of messages that were decided; those of others are not sent, since they will be tried again."""
        for span, incoming, each in zip(self._messages, batch, decided, strict=True):
            if each is not None:
                rejected = each.outcome.error.reason if isinstance(each.outcome, Rejected) else None
                span.end({"podium.outcome": type(each.outcome).__name__, **_of_agent(incoming, each)}, error=rejected)
        if self._batch is not None and any(each is not None for each in decided):
            self._batch.end({})

    def _start(self, tracer: "Tracer", message: Delivery) -> "Span":
        key = message.routing_key
        attributes = _OPERATION | {
            "messaging.destination.name": f"{REGISTRATIONS_EXCHANGE}:{key}:{REGISTRATIONS_QUEUE}",
            "messaging.rabbitmq.destination.routing_key": key,
            "messaging.rabbitmq.message.delivery_tag": message.tag,
            "messaging.message.body.size": len(message.body),
        }
        if message.message_id:
            attributes["messaging.message.id"] = message.message_id
        links = () if self._batch is None else (self._batch,)
        return tracer.start(_NAME, "consumer", attributes, parent=traceparent_of(message), links=links)


class TransactionSpans:
    """The spans of one transaction, one in the trace of each announcement. What is not ended is not sent."""

    def __init__(self, tracer: "Tracer", batch: Sequence[Incoming]) -> None:
        """The transaction begins now."""
        attributes: dict[str, str | int | bool] = {
            "db.system.name": "postgresql",
            "db.operation.name": "register_batch",
        }
        if len(batch) > 1:
            attributes["db.operation.batch.size"] = len(batch)
        self._spans = [
            tracer.start("register_batch", "client", attributes, parent=each.content.traceparent)
            if isinstance(each.content, Announcement)
            else None
            for each in batch
        ]

    def end(self, decided: Sequence[Decided | None]) -> None:
        """The transaction is committed: end the spans of the announcements that it decided."""
        for span, each in zip(self._spans, decided, strict=True):
            if span is not None and each is not None:
                span.end({})


def _of_agent(incoming: Incoming, decided: Decided) -> dict[str, str | int | bool]:
    if decided.state is None:
        return {}
    agent = decided.state.agent
    return {
        **agent_attributes(agent.name, agent.id, incoming.content.deployment_id),
        "podium.generation": agent.generation,
    }
