"""The Litestar application, and the uvicorn server that runs it until SIGTERM or SIGINT."""

import asyncio
import contextlib
import logging
import math
import resource
import signal
import socket
from collections.abc import AsyncGenerator, Generator, Sequence
from functools import partial

import structlog
import uvicorn
from litestar import Litestar, Router
from litestar.di import Provide
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler

from api.auth.binding import StartRefused, check_bind, read_issuers
from api.auth.browsers import check_origin
from api.auth.credentials import Connection
from api.auth.guard import check_caller
from api.console.page import template_config
from api.console.routes import console_routes
from api.events import routes as event_routes
from api.gateway import agent_cards, resource_metadata
from api.gateway import routes as rpc_routes
from api.gateway.fast_path import FastPath
from api.gateway.forward import UpstreamResponseBroken
from api.http.limits import ConnectionLimits, LimitedHttpProtocol, watch_peer
from api.http.metrics import MeasuredApp, metrics_route
from api.http.options import options_handlers
from api.http.problems import EXCEPTION_HANDLERS
from api.http.request_checks import check_request
from api.http.sniffing import UnsniffedApp
from api.measured import Measured, scrape
from api.resources import open_resources, provide_resources
from api.routes import (
    agents,
    audit,
    calls,
    deployments,
    documents,
    health,
    keys,
    parked,
    registrations,
    rollback,
    webhooks,
)
from contracts.messages import REGISTRATION_MAX_BYTES
from services.settings import Settings
from services.tracing.start import refusal

MAX_DESCRIPTORS = 65_536
# When connections are shut down again: those that were accepted just before the end of listening are not among
# uvicorn's yet, and would take calls for as long as others last. It waits for a tenth of a second at least.
LATE_CONNECTIONS_SECONDS = 0.05

log = structlog.get_logger(__name__)


def create_app(settings: Settings, routed: Litestar | None = None) -> Litestar:
    """The application. It connects to nothing before the first request. Raises `StartRefused`.

    `routed` is what `route` makes for these settings, if it was made before; nobody else may serve it.
    """
    check_bind(settings)
    issuers = read_issuers(settings)
    if (why := refusal(settings)) is not None:
        raise StartRefused(why)
    app = routed or route(keys_required=settings.keys_required)
    measured = Measured()
    app.state.measured = measured
    app.state.opening = partial(open_resources, settings, measured.registry, measured.of_agents, issuers)
    # Around routing, so that requests without a route are counted too.
    app.asgi_handler = MeasuredApp(UnsniffedApp(FastPath(app)), measured.registry)
    return app


def route(*, keys_required: bool) -> Litestar:
    """All routes: most of the work of `create_app`, and nothing that belongs to one process or to its settings."""
    return Litestar(
        # OpenAPI lists the routes in this order.
        route_handlers=[
            _resource("Registrations", registrations.REGISTER_ROUTES),
            _resource("Agents", [*agents.ROUTES, *rollback.ROUTES, *calls.ROUTES]),
            _resource("Deployments", deployments.ROUTES),
            _resource("Registrations", registrations.ROUTES),
            _resource("Parked messages", parked.ROUTES),
            _resource("Events", event_routes.ROUTES),
            _resource("Webhooks", webhooks.ROUTES),
            _resource("Access", [*keys.ROUTES, *audit.ROUTES]),
            _resource("Deployments", deployments.LOOKUP_ROUTES),
            *options_handlers(rpc_routes.ROUTES),
            *rpc_routes.ROUTES,
            _resource("Agent cards", [*agent_cards.ROUTES, *resource_metadata.ROUTES]),
            _resource("Monitoring", [*health.ROUTES, metrics_route(scrape)]),
            _resource("Documents", documents.ROUTES),
            *console_routes(),
        ],
        dependencies={"resources": Provide(provide_resources, sync_to_thread=False)},
        exception_handlers=EXCEPTION_HANDLERS,
        guards=[check_caller],
        lifespan=[_open],
        logging_config=None,
        openapi_config=documents.openapi_config(key_required=keys_required),
        request_max_body_size=REGISTRATION_MAX_BYTES,
        template_config=template_config(),
    )


@contextlib.asynccontextmanager
async def _open(app: Litestar) -> AsyncGenerator[None, None]:
    async with app.state.opening() as resources:
        app.state.resources = resources
        yield


def _resource(tag: str, handlers: Sequence[HTTPRouteHandler]) -> Router:
    """Routes under one heading of the OpenAPI document, which refuse what they do not read."""
    return Router("/", route_handlers=[*options_handlers(handlers), *handlers], tags=[tag], guards=[_check])


async def _check(connection: Connection, handler: BaseRouteHandler) -> None:
    """Both checks of a route that does not forward, as one guard: Litestar copies the handler for each guard."""
    await check_origin(connection, handler)
    await check_request(connection, handler)


class ApiServer(uvicorn.Server):
    """A server that leaves signals to the surrounding program: call `stop` for a graceful shutdown."""

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits) -> None:
        super().__init__(config)
        self._check_seconds = limits.check_seconds
        self._next_check = 0.0

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Install no signal handlers."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the addresses."""
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                watch_peer(listener)
        log.info("The API listens.", action="api.listening", addresses=self.addresses)

    async def on_tick(self, counter: int) -> bool:
        """Check the limits of all connections; uvicorn calls this ten times a second."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_check:
            self._next_check = now + self._check_seconds
            for connection in list(self.server_state.connections):
                assert isinstance(connection, LimitedHttpProtocol)
                connection.check(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the event streams, which would otherwise stay open; then wait for all other requests."""
        app = self.config.app
        assert isinstance(app, Litestar)
        provide_resources(app.state).events.end()
        again = asyncio.get_running_loop().call_later(LATE_CONNECTIONS_SECONDS, self._shut_down_connections)
        await super().shutdown(sockets)
        again.cancel()

    def _shut_down_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.shutdown()

    @property
    def addresses(self) -> list[str]:
        """`host:port` of every socket, with the actual port where the settings say 0."""
        names = [each.getsockname() for server in self.servers for each in server.sockets]
        return [f"{host}:{port}" for host, port, *_ in names]

    def stop(self) -> None:
        """Stop after the requests in flight or the drain timeout; a second call stops at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


class _BrokenUpstreamFilter(logging.Filter):
    """Drops uvicorn's traceback of `UpstreamResponseBroken`, which the gateway has already logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, UpstreamResponseBroken)


# One object, since a logger ignores a filter that it already has.
_BROKEN_UPSTREAM_FILTER = _BrokenUpstreamFilter()


def make_server(settings: Settings, routed: Litestar | None = None) -> ApiServer:
    """A server to run inside an asyncio program: `await server.serve()`. Raises `StartRefused`.

    `routed` is for `create_app`.
    """
    app, limits = create_app(settings, routed), ConnectionLimits.of(settings)
    logging.getLogger("uvicorn.error").addFilter(_BROKEN_UPSTREAM_FILTER)
    return ApiServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=partial(LimitedHttpProtocol, limits=limits),  # type: ignore[arg-type]  # called like the class
            lifespan="on",
            ws="none",
            access_log=False,
            log_config=None,
            # The agent's answer contains its own.
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout.total_seconds()),
        ),
        limits,
    )


def allow_many_connections() -> None:
    """Raise the limit of file descriptors: a forwarded stream needs two, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(settings: Settings) -> None:
    """Run the API until SIGTERM or SIGINT, then shut down gracefully. Raises `StartRefused`.

    The caller chooses the event loop; uvloop's is faster.
    """
    allow_many_connections()
    server = make_server(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    await server.serve()
