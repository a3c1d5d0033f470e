"""What one API process holds open, and hands to its handlers."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from litestar.datastructures import State
from litestar.di import NamedDependency
from prometheus_client import CollectorRegistry

from api.events.fanout import FanOut
from api.gateway.gateway import Gateway, open_gateway
from services.events.notifier import OutboxNotifier
from services.health.prober import Prober, open_prober
from services.settings import Settings
from services.storage.database import Sessions, close_engine, make_engine

APPLICATION_NAME = "podium-api"
UNAUTHENTICATED = "local"
AUTHENTICATED = "api-key"


@dataclass(frozen=True, slots=True)
class Resources:
    """Open from start to stop of the process. `reads` commits each statement by itself, without a transaction around.

    A commit of `sessions` that wrote events wakes the relay.
    """

    settings: Settings
    sessions: Sessions
    reads: Sessions
    gateway: Gateway
    prober: Prober
    events: FanOut

    @property
    def actor(self) -> str:
        """Who every caller is, until keys have owners."""
        return AUTHENTICATED if self.settings.api_key.get_secret_value() else UNAUTHENTICATED


@asynccontextmanager
async def open_resources(settings: Settings, registry: CollectorRegistry) -> AsyncGenerator[Resources, None]:
    """The resources, closed afterwards; nothing connects before the first request."""
    engine = make_engine(settings, application_name=APPLICATION_NAME)
    events_engine = make_engine(settings, application_name=APPLICATION_NAME, pool_size=1)
    timeout = settings.database_timeout
    reads = Sessions(engine.execution_options(isolation_level="AUTOCOMMIT"), timeout=timeout)
    try:
        async with (
            OutboxNotifier(engine) as notifier,
            open_gateway(settings, reads, registry, application_name=APPLICATION_NAME) as gateway,
            FanOut(events_engine) as events,
            open_prober(settings, (settings.host, settings.port)) as prober,
        ):
            sessions = Sessions(engine, timeout=timeout, on_events=notifier.notify)
            yield Resources(settings, sessions, reads, gateway, prober, events)
    finally:
        await close_engine(engine)


def provide_resources(state: State) -> Resources:
    """The resources of this process, for handlers that ask for `resources`."""
    resources = state.resources
    assert isinstance(resources, Resources)
    return resources


# What a handler's parameter `resources` is annotated with.
Injected = NamedDependency[Resources]
