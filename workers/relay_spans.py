"""The span of a published event: it is the context of the message, while the event keeps that of its cause."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row

from contracts.topology import EVENTS_EXCHANGE, event_key
from services.tracing.attributes import agent_attributes

if TYPE_CHECKING:
    from services.tracing.tracer import Tracer


@contextmanager
def publish_span(tracer: "Tracer | None", event: Row[*tuple[Any, ...]]) -> Iterator[str | None]:
    """While inside, this event is published; gives the trace context for its message.

    An event without a trace context gets no span.
    """
    if tracer is None or event.traceparent is None:
        yield event.traceparent
        return
    key = event_key(event.type, event.agent_name)
    span = tracer.start(
        f"publish {EVENTS_EXCHANGE}",
        "producer",
        {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": f"{EVENTS_EXCHANGE}:{key}",
            "messaging.destination.template": EVENTS_EXCHANGE,
            "messaging.rabbitmq.destination.routing_key": key,
            "messaging.message.id": str(event.event_id),
            **agent_attributes(event.agent_name, event.agent_id),
            "podium.event.type": event.type,
            "podium.event.sequence": event.sequence,
            "podium.generation": event.generation,
        },
        parent=event.traceparent,
    )
    error: str | None = None
    try:
        yield span.traceparent
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        span.end({}, error=error)
