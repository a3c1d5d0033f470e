"""One process that runs any of the workers; several processes side by side are safe."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from services.events.notifier import OutboxNotifier
from services.settings import Settings
from services.storage.database import Sessions, close_engine, make_engine
from workers.dead_letters import Drainer
from workers.janitor.sweeper import Sweeper
from workers.janitor.worker import CONNECTIONS as JANITOR_CONNECTIONS
from workers.janitor.worker import Janitor
from workers.registrar.consumer import Registrar
from workers.relay import IDLE_SESSION_TIMEOUT, Relay


class WorkerName(StrEnum):
    """What a worker process can be told to do."""

    REGISTRAR = "registrar"
    RELAY = "relay"
    DRAINER = "drainer"
    JANITOR = "janitor"


# To PostgreSQL, at most.
CONNECTIONS = {
    WorkerName.REGISTRAR: 2,  # its transaction, and what wakes the relay
    WorkerName.RELAY: 1,
    WorkerName.DRAINER: 1,
    WorkerName.JANITOR: JANITOR_CONNECTIONS + 1,  # the sweep has its own
}
# Of the drain timeout: after the first share what still runs is cut short, after the second the process ends.
FINISH_SHARE = 0.5
END_SHARE = 0.95

log = structlog.get_logger(__name__)


class WorkerLost(Exception):
    """A worker has ended although nobody told it to: this process has to be started again."""


Work = Callable[[Settings, asyncio.Event], Coroutine[Any, Any, None]]


async def run_workers(settings: Settings, names: Iterable[WorkerName] = WorkerName) -> None:
    """Run these workers until SIGTERM or Ctrl-C, which let them finish what they hold; a second signal ends at once.

    However long a server keeps them waiting, the process ends within the drain timeout.
    """
    runners: dict[WorkerName, Work] = {
        WorkerName.REGISTRAR: run_registrar,
        WorkerName.RELAY: run_relay,
        WorkerName.DRAINER: run_drainer,
        WorkerName.JANITOR: run_janitor,
    }
    async with stopped_by_signals() as stop, asyncio.TaskGroup() as group:
        workers = {group.create_task(runners[name](settings, stop), name=name) for name in dict.fromkeys(names)}
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({*workers, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if any(worker.done() and worker.cancelled() for worker in workers):
            # No error that the group would see: without this the others would go on, and nobody would miss it.
            raise WorkerLost
        if stop.is_set():
            await _finish(workers, settings.drain_timeout.total_seconds())


async def _finish(workers: "set[asyncio.Task[None]]", drain_seconds: float) -> None:
    """Give them time to finish, then cut them short; what they held comes again."""
    log.info("Finishing what is in hand.", action="worker.stopping", within_seconds=drain_seconds)
    # Its default action ends the process, whatever hangs by then.
    signal.setitimer(signal.ITIMER_REAL, max(drain_seconds * END_SHARE, 0.1))
    _, late = await asyncio.wait(workers, timeout=drain_seconds * FINISH_SHARE)
    for worker in late:
        log.warning(
            "Not finished in time; what is in hand comes again.", action="worker.cut_short", worker=worker.get_name()
        )
        worker.cancel()


async def run_registrar(settings: Settings, stop: asyncio.Event) -> None:
    """Take registrations until told to stop."""
    engine = make_engine(settings, application_name="podium-registrar", pool_size=CONNECTIONS[WorkerName.REGISTRAR])
    async with _disposed(engine), OutboxNotifier(engine) as notifier:
        await Registrar(settings, Sessions(engine, on_events=notifier.notify)).run(stop)


async def run_relay(settings: Settings, stop: asyncio.Event) -> None:
    """Publish events until told to stop."""
    engine = make_engine(
        settings,
        application_name="podium-relay",
        pool_size=CONNECTIONS[WorkerName.RELAY],
        idle_session_timeout=IDLE_SESSION_TIMEOUT,
    )
    async with _disposed(engine):
        await Relay(settings, engine).run(stop)


async def run_drainer(settings: Settings, stop: asyncio.Event) -> None:
    """Move what the broker gave up on into the table of parked messages until told to stop."""
    engine = make_engine(settings, application_name="podium-drainer", pool_size=CONNECTIONS[WorkerName.DRAINER])
    async with _disposed(engine):
        await Drainer(settings, Sessions(engine)).run(stop)


async def run_janitor(settings: Settings, stop: asyncio.Event) -> None:
    """Keep states true and tables tidy until told to stop."""
    engine = make_engine(settings, application_name="podium-janitor", pool_size=CONNECTIONS[WorkerName.JANITOR])
    async with _disposed(engine), OutboxNotifier(engine) as notifier, asyncio.TaskGroup() as duties:
        sessions = Sessions(engine, on_events=notifier.notify)
        duties.create_task(Janitor(settings, sessions).run(stop))
        duties.create_task(Sweeper(settings, sessions).run(stop))


@asynccontextmanager
async def _disposed(engine: AsyncEngine) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await close_engine(engine)


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
