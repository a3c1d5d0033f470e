"""HTTP metrics for Prometheus: requests by method, route template and status, never by path or agent."""

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from time import perf_counter
from typing import Any

from litestar import Request, Response, get
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from api.http.access import PUBLIC
from api.http.problems import documented_public

# Unknown paths and methods share one label value, so that callers cannot create time series.
UNMATCHED = "unmatched"
OTHER = "OTHER"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Streamed answers last minutes, promotes milliseconds.
_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class MeasuredApp:
    """An ASGI application that counts and times every request, including those without a route."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        requests = Counter(
            "podium_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        seconds = Histogram(
            "podium_http_request_seconds",
            "Time from the start of a request to the end of its answer.",
            ["method", "route"],
            buckets=_BUCKETS_SECONDS,
            registry=registry,
        )
        # Each series is looked up once: the labels are from small sets.
        self._requests_of = cache(requests.labels)
        self._seconds_of = cache(seconds.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the request when its answer starts, and time it when its answer ends."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        started = perf_counter()

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests_of(method, _route(scope), message["status"]).inc()
            await send(message)

        try:
            await self._app(scope, receive, send_and_count)
        finally:
            self._seconds_of(method, _route(scope)).observe(perf_counter() - started)


Scrape = Callable[[Request[Any, Any, Any]], Awaitable[Sequence[CollectorRegistry]]]


def metrics_route(scrape: Scrape) -> HTTPRouteHandler:
    """The route that Prometheus scrapes; `scrape` gives what the caller may see."""

    @get(
        "/metrics",
        opt=PUBLIC,
        operation_id="read_metrics",
        responses=documented_public(),
        media_type="text/plain",
    )
    async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        """The metrics of this process, in the Prometheus text format; those of agents need a key that reads all agents.

        Where no key is required, everybody gets them.
        """
        text = b"".join([generate_latest(registry) for registry in await scrape(request)])
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    return metrics


def _route(scope: Scope) -> str:
    template = scope.get("path_template")
    return template if isinstance(template, str) and template else UNMATCHED
