"""What one API process holds open, and hands to its handlers."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from litestar.datastructures import State
from litestar.di import NamedDependency
from prometheus_client import CollectorRegistry

from api.circuits import Circuits
from api.error_style import ErrorStyles
from api.fanout import FanOut
from api.rpc_calls import RpcMetrics
from api.upstream import upstream_session
from services.database import Sessions, close_engine, make_engine, make_sessions
from services.probe import Prober, open_prober
from services.route_reads import RouteReads
from services.settings import Settings
from services.wake import Waker

APPLICATION_NAME = "podium-api"
UNAUTHENTICATED = "local"
AUTHENTICATED = "api-key"


@dataclass(frozen=True, slots=True)
class Resources:
    """Open from start to stop of the process; `reads` sends single statements without a transaction around them."""

    settings: Settings
    sessions: Sessions
    reads: Sessions
    waker: Waker
    http: aiohttp.ClientSession
    routes: RouteReads
    circuits: Circuits
    rpc_metrics: RpcMetrics
    prober: Prober
    events: FanOut
    error_styles: ErrorStyles = field(default_factory=ErrorStyles)

    @property
    def actor(self) -> str:
        """Who every caller is, until keys have owners."""
        return AUTHENTICATED if self.settings.api_key.get_secret_value() else UNAUTHENTICATED


@asynccontextmanager
async def open_resources(settings: Settings, registry: CollectorRegistry) -> AsyncGenerator[Resources, None]:
    """The resources, closed afterwards; nothing is connected to before it is asked."""
    engine = make_engine(settings, application_name=APPLICATION_NAME)
    events_engine = make_engine(settings, application_name=APPLICATION_NAME, pool_size=1)
    circuits, rpc_metrics = Circuits(settings), RpcMetrics(registry)
    rpc_metrics.watch(circuits)
    try:
        async with (
            Waker(engine) as waker,
            upstream_session(settings) as http,
            RouteReads(settings, application_name=APPLICATION_NAME) as routes,
            FanOut(events_engine) as events,
            open_prober(settings, (settings.host, settings.port)) as prober,
        ):
            yield Resources(
                settings=settings,
                sessions=make_sessions(engine, patience=settings.database_timeout),
                reads=make_sessions(
                    engine.execution_options(isolation_level="AUTOCOMMIT"), patience=settings.database_timeout
                ),
                waker=waker,
                http=http,
                routes=routes,
                circuits=circuits,
                rpc_metrics=rpc_metrics,
                prober=prober,
                events=events,
            )
    finally:
        await close_engine(engine)


def provide_resources(state: State) -> Resources:
    """The resources of this process, for handlers that ask for `resources`."""
    resources = state.resources
    assert isinstance(resources, Resources)
    return resources


# What a handler's parameter `resources` is annotated with.
Injected = NamedDependency[Resources]
