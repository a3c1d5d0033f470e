"""Spans, by the OpenTelemetry SDK. Import this module only with traces on.

Names and attributes follow the semantic conventions for messaging, HTTP, databases and generative AI
(https://opentelemetry.io/docs/specs/semconv/). Ending a span puts it into a bounded queue; a thread sends what is in
it. A span for which there is no room is dropped, so the collector can delay nothing.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from time import monotonic
from typing import Literal
from uuid import uuid4

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan

Kind = Literal["server", "client", "producer", "consumer"]
Attributes = Mapping[str, str | int | bool]

# How often the log says that spans are lost.
LOGGED_EVERY_SECONDS = 60.0
# Text in attributes comes from agents and callers; a batch links to as many messages as it has at most.
ATTRIBUTE_MAX_LENGTH = 256
LINKS_MAX = 5000
_KINDS = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}

log = structlog.get_logger(__name__)


class Span:
    """One span. `end` it exactly once."""

    __slots__ = ("_span", "context")

    def __init__(self, span: SdkSpan) -> None:
        self._span = span
        self.context = span.get_span_context()

    @property
    def traceparent(self) -> str:
        """The W3C trace context of this span, for what it causes."""
        context = self.context
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & TraceFlags.SAMPLED:02x}"

    def end(self, attributes: Mapping[str, str | int | bool | None], *, error: str | None = None) -> None:
        """End the span with these attributes, without those that are None; `error` is the reason if it failed."""
        span = self._span
        if span.is_recording():
            span.set_attributes({name: value for name, value in attributes.items() if value is not None})
            if error is not None:
                span.set_attribute("error.type", error)
                span.set_status(Status(StatusCode.ERROR))
        span.end()


class Tracer:
    """Starts the spans of one process."""

    def __init__(self, service: str) -> None:
        """`service` is the name of the service, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES name it."""
        own = {"service.name": service, "service.version": version("podium"), "service.instance.id": str(uuid4())}
        _report_losses()
        self._provider = _provider(Resource.create().merge(Resource(own)).merge(OTELResourceDetector().detect()))
        tracer = self._provider.get_tracer("podium", own["service.version"])
        assert isinstance(tracer, SdkTracer)
        self._tracer = tracer

    def start(
        self,
        name: str,
        kind: Kind,
        attributes: Attributes,
        *,
        parent: "str | Span | None" = None,
        links: "Sequence[str | Span]" = (),
    ) -> Span:
        """A span that starts now, the root of a new trace without a parent.

        Parents and links that are given as text are valid `traceparent` values.
        """
        context = None if parent is None else set_span_in_context(NonRecordingSpan(_context(parent)))
        linked = [Link(_context(each)) for each in links]
        return Span(self._tracer.start_span(name, context, _KINDS[kind], attributes, linked))

    async def close(self, seconds: float) -> None:
        """Send what is left, for at most so many seconds."""
        closed = threading.Event()

        def close() -> None:
            self._provider.shutdown()
            closed.set()

        # A daemon: the process ends even if the collector never answers.
        threading.Thread(target=close, name="traces.close", daemon=True).start()
        await asyncio.to_thread(closed.wait, seconds)


def refused_variable() -> str | None:
    """What the SDK does not accept about the standard variables; None if it can work with them.

    It says of some values that it ignores them, in the log, and raises an error for others.
    """
    _report_losses()
    try:
        _provider(Resource.get_empty()).shutdown()
    except ValueError as error:
        return str(error)
    return None


def _provider(resource: Resource) -> TracerProvider:
    provider = TracerProvider(resource=resource, span_limits=_limits(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _context(of: "str | Span") -> SpanContext:
    if isinstance(of, Span):
        return of.context
    _, trace_id, span_id, flags = of.split("-")[:4]
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _limits() -> SpanLimits:
    """The standard variables count; without them, a batch can link to all of its messages, and texts are short."""
    return SpanLimits(
        max_links=None if "OTEL_SPAN_LINK_COUNT_LIMIT" in os.environ else LINKS_MAX,
        max_attribute_length=None if "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT" in os.environ else ATTRIBUTE_MAX_LENGTH,
    )


class _Losses(logging.Handler):
    """Says once a minute that spans are lost, however often the SDK does."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said_at = -LOGGED_EVERY_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        if monotonic() < self._said_at + LOGGED_EVERY_SECONDS:
            return
        self._said_at = monotonic()
        log.warning("Traces are not sent.", action="traces.lost", why=record.getMessage()[:300])


_LOSSES = _Losses()


def _report_losses() -> None:
    sdk = logging.getLogger("opentelemetry")
    sdk.handlers = [_LOSSES]
    sdk.propagate = False
