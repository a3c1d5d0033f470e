"""One process that runs any of the workers; several processes side by side are safe."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any

from services.database import make_engine, make_sessions
from services.settings import Settings
from services.wake import Waker
from workers.registrar import Registrar
from workers.relay import IDLE_SESSION_TIMEOUT, Relay


class WorkerName(StrEnum):
    """What a worker process can be told to do."""

    REGISTRAR = "registrar"
    RELAY = "relay"


# The registrar's transaction and the waker's notification.
REGISTRAR_CONNECTIONS = 2


async def run_workers(settings: Settings, names: Iterable[WorkerName] = WorkerName) -> None:
    """Run these workers until SIGTERM or Ctrl-C, which let them finish what they hold; a second signal ends at once."""
    runners: dict[WorkerName, Callable[[Settings, asyncio.Event], Coroutine[Any, Any, None]]] = {
        WorkerName.REGISTRAR: run_registrar,
        WorkerName.RELAY: run_relay,
    }
    async with stopped_by_signals() as stop, asyncio.TaskGroup() as group:
        for name in dict.fromkeys(names):
            group.create_task(runners[name](settings, stop), name=name)


async def run_registrar(settings: Settings, stop: asyncio.Event) -> None:
    """Take registrations until told to stop."""
    engine = make_engine(settings, application_name="podium-registrar", pool_size=REGISTRAR_CONNECTIONS)
    try:
        async with Waker(engine) as waker:
            await Registrar(settings, make_sessions(engine), waker).run(stop)
    finally:
        await engine.dispose()


async def run_relay(settings: Settings, stop: asyncio.Event) -> None:
    """Publish events until told to stop."""
    engine = make_engine(
        settings, application_name="podium-relay", pool_size=1, idle_session_timeout=IDLE_SESSION_TIMEOUT
    )
    try:
        await Relay(settings, engine).run(stop)
    finally:
        await engine.dispose()


@asynccontextmanager
async def stopped_by_signals() -> AsyncIterator[asyncio.Event]:
    """An event that the first SIGTERM or Ctrl-C sets; the second one ends the process as it would by default."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def first() -> None:
        stop.set()
        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    for each in signals:
        loop.add_signal_handler(each, first)
    try:
        yield stop
    finally:
        for each in signals:
            loop.remove_signal_handler(each)
