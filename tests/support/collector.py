"""A collector of traces: what OTLP over HTTP sends, decoded; or one that is out of order."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {2: "server", 3: "client", 4: "producer", 5: "consumer"}


@dataclass(frozen=True)
class ReceivedSpan:
    """One span, with ids in hexadecimal digits."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    links: list[str]
    attributes: dict[str, Any]
    failed: bool

    @property
    def traceparent(self) -> str:
        """The context of this span."""
        return f"00-{self.trace_id}-{self.span_id}-01"


@dataclass
class Collector:
    """The spans that have arrived."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    requests: int = 0

    def named(self, name: str, **attributes: Any) -> list[ReceivedSpan]:
        """The spans with this name and these attributes, whose names have `_` for `.`."""
        wanted = {attribute.replace("_", "."): value for attribute, value in attributes.items()}
        return [
            span
            for span in self.spans
            if span.name == name
            and wanted.items() <= {**span.attributes, **wanted}.items()
            and all(span.attributes.get(each) == value for each, value in wanted.items())
        ]

    def environment(self) -> dict[str, str]:
        """The variables with which a process sends its traces here, soon."""
        return {
            "PODIUM_TRACES": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }


@asynccontextmanager
async def running_collector(*, status: int = 200) -> AsyncIterator[Collector]:
    """A collector that answers with this status."""
    collector = Collector()

    async def collect(request: web.Request) -> web.Response:
        collector.requests += 1
        if status == 200:
            collector.spans += _decoded(await request.read())
        return web.Response(status=status)

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    collector.url = f"http://{host}:{port}"
    try:
        yield collector
    finally:
        await runner.cleanup()


def _decoded(body: bytes) -> list[ReceivedSpan]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        ReceivedSpan(
            service=_attributes(resource.resource.attributes)["service.name"],
            name=span.name,
            kind=KINDS.get(span.kind, str(span.kind)),
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            links=[f"{link.trace_id.hex()}-{link.span_id.hex()}" for link in span.links],
            attributes=_attributes(span.attributes),
            failed=span.status.code == 2,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _attributes(given: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in given}
