"""The Litestar application, and the server that runs it until the process is told to stop."""

import asyncio
import contextlib
import logging
import math
import resource
import signal
import socket
from collections.abc import AsyncGenerator, Generator

import structlog
import uvicorn
from litestar import Litestar
from litestar.di import Provide
from prometheus_client import CollectorRegistry

from api.auth import check_bind, check_caller
from api.events import routes as events
from api.gateway import agent_cards as cards
from api.gateway import routes as rpc
from api.gateway.fast_path import FastPath
from api.gateway.forward import AnswerBroke
from api.http.limits import BoundedHttp
from api.http.metrics import Measured, metrics_route
from api.http.problems import EXCEPTION_HANDLERS
from api.resources import open_resources, provide_resources
from api.routes import agents, asyncapi, deployments, health, lookup, parked, registration, registrations, rollback
from api.routes import documents as openapi
from contracts.messages import REGISTRATION_MAX_BYTES
from services.settings import Settings

# Idle connections of callers; those towards agents are the gateway's own.
KEEP_ALIVE_SECONDS = 5
MOST_DESCRIPTORS = 65_536

log = structlog.get_logger(__name__)


def create_app(settings: Settings) -> Litestar:
    """The application; it connects to nothing before it is asked. Raises `StartRefused`."""
    check_bind(settings)
    registry = CollectorRegistry()

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
        async with open_resources(settings, registry) as resources:
            app.state.resources = resources
            yield

    app = Litestar(
        route_handlers=[
            *registration.ROUTES,
            *agents.ROUTES,
            *rollback.ROUTES,
            *deployments.ROUTES,
            *registrations.ROUTES,
            *parked.ROUTES,
            *events.ROUTES,
            *lookup.ROUTES,
            *rpc.ROUTES,
            *cards.ROUTES,
            *health.ROUTES,
            *openapi.ROUTES,
            *asyncapi.ROUTES,
            metrics_route(registry),
        ],
        dependencies={"resources": Provide(provide_resources, sync_to_thread=False)},
        exception_handlers=EXCEPTION_HANDLERS,
        guards=[check_caller],
        lifespan=[lifespan],
        logging_config=None,
        openapi_config=openapi.openapi_config(),
        request_max_body_size=REGISTRATION_MAX_BYTES,
    )
    # Outside of routing, so that requests that no route takes are counted too.
    app.asgi_handler = Measured(FastPath(app), registry)
    return app


class ApiServer(uvicorn.Server):
    """A server that leaves signals to the program around it: call `stop` to end it in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take no signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        log.info("The API listens.", action="api.listening", addresses=self.addresses)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams of events, which have no end of their own; then everything else, as it comes to its end."""
        app = self.config.app
        assert isinstance(app, Litestar)
        provide_resources(app.state).events.end()
        await super().shutdown(sockets)

    @property
    def addresses(self) -> list[str]:
        """`host:port` of every socket, with the port that a 0 in the settings became."""
        names = [each.getsockname() for server in self.servers for each in server.sockets]
        return [f"{host}:{port}" for host, port, *_ in names]

    def stop(self) -> None:
        """Finish what runs, within the drain time; a second time: at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


class _ToldAlready(logging.Filter):
    """Drops uvicorn's traceback of an agent's broken answer: the gateway has logged it, and to raise is its way out."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, AnswerBroke)


_TOLD_ALREADY = _ToldAlready()


def make_server(settings: Settings) -> ApiServer:
    """A server to run inside an asyncio program: `await server.serve()`. Raises `StartRefused`."""
    app = create_app(settings)
    logging.getLogger("uvicorn.error").addFilter(_TOLD_ALREADY)
    return ApiServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=BoundedHttp,
            lifespan="on",
            ws="none",
            access_log=False,
            log_config=None,
            # An agent's answer carries its own.
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout.total_seconds()),
        )
    )


def allow_many_connections() -> None:
    """Take as many descriptors as this process may: a stream needs two, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(settings: Settings) -> None:
    """Run the API until SIGTERM or SIGINT, then finish what runs. Raises `StartRefused`.

    The event loop is the caller's choice; uvloop's is the fast one.
    """
    allow_many_connections()
    server = make_server(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    await server.serve()
