"""A process that runs one or more of the workers. Any number of such processes can run at the same time."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from services.events.notifier import OutboxNotifier
from services.settings import Settings
from services.storage.database import Sessions, close_engine, make_engine
from services.tracing.start import open_tracer, refusal
from workers.dead_letters import Drainer
from workers.janitor.sweeper import Sweeper
from workers.janitor.worker import CONNECTIONS as JANITOR_CONNECTIONS
from workers.janitor.worker import Janitor
from workers.metrics import WorkerMetrics
from workers.monitoring import monitored
from workers.registrar.consumer import LOCK_TIMEOUT, Registrar, StartRefused, signing_secret
from workers.relay import IDLE_SESSION_TIMEOUT, Relay
from workers.webhooks.deliverer import CONNECTIONS as WEBHOOK_CONNECTIONS
from workers.webhooks.deliverer import LOCK_TIMEOUT as WEBHOOK_LOCK_TIMEOUT
from workers.webhooks.deliverer import Deliverer

if TYPE_CHECKING:
    from services.tracing.tracer import Tracer


class WorkerName(StrEnum):
    """The workers that a process can run."""

    REGISTRAR = "registrar"
    RELAY = "relay"
    DRAINER = "drainer"
    JANITOR = "janitor"
    WEBHOOKS = "webhooks"


# The most connections to PostgreSQL that each worker opens.
CONNECTIONS = {
    WorkerName.REGISTRAR: 3,  # its transaction, that of deferred messages, and the notification of the relay
    WorkerName.RELAY: 1,
    WorkerName.DRAINER: 1,
    WorkerName.JANITOR: JANITOR_CONNECTIONS + 1,  # one for retention
    WorkerName.WEBHOOKS: WEBHOOK_CONNECTIONS,
}
# Shares of the drain timeout: after the first one, workers that still run are cancelled; after the second one, the
# process ends in any case.
CANCEL_AT_SHARE = 0.5
EXIT_AT_SHARE = 0.95

log = structlog.get_logger(__name__)


class WorkerLost(Exception):
    """A worker ended without being stopped: start this process again."""


Work = Callable[[Settings, asyncio.Event, WorkerMetrics], Coroutine[Any, Any, None]]


async def run_workers(settings: Settings, names: Iterable[WorkerName] = WorkerName) -> None:
    """Run these workers until SIGTERM or Ctrl-C.

    After the first signal the workers finish the messages that they have received. A second signal ends the process at
    once. The process ends within the drain timeout even if a server does not answer. Raises an `ExceptionGroup` with
    `WorkerLost` if a worker ends without a signal, and `StartRefused` before it starts one.
    """
    if (why := refusal(settings)) is not None:
        raise StartRefused(why)
    names = list(dict.fromkeys(names))
    if WorkerName.REGISTRAR in names:
        signing_secret(settings)
    metrics = WorkerMetrics(settings.metrics_agents)
    async with (
        stopped_by_signals() as stop,
        open_tracer(settings, "podium-worker") as tracer,
        monitored(settings, metrics),
        asyncio.TaskGroup() as group,
    ):
        runners: dict[WorkerName, Work] = {
            WorkerName.REGISTRAR: partial(run_registrar, tracer=tracer),
            WorkerName.RELAY: partial(run_relay, tracer=tracer),
            WorkerName.DRAINER: run_drainer,
            WorkerName.JANITOR: run_janitor,
            WorkerName.WEBHOOKS: run_webhooks,
        }
        workers = {group.create_task(runners[name](settings, stop, metrics), name=name) for name in names}
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({*workers, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if any(worker.done() and worker.cancelled() for worker in workers):
            # A task group ignores cancelled tasks: without this, the other workers would continue without this one.
            raise WorkerLost
        if stop.is_set():
            await _finish(workers, settings.drain_timeout.total_seconds())


async def _finish(workers: "set[asyncio.Task[None]]", drain_seconds: float) -> None:
    """Let the workers finish, then cancel those that still run; the broker redelivers their messages."""
    log.info(
        "Stopping: finishing the messages already received.", action="worker.stopping", within_seconds=drain_seconds
    )
    # The default action of SIGALRM ends the process, even if the event loop hangs.
    signal.setitimer(signal.ITIMER_REAL, max(drain_seconds * EXIT_AT_SHARE, 0.1))
    _, late = await asyncio.wait(workers, timeout=drain_seconds * CANCEL_AT_SHARE)
    for worker in late:
        log.warning(
            "A worker did not finish in time; its messages will be redelivered.",
            action="worker.cut_short",
            worker=worker.get_name(),
        )
        worker.cancel()


async def run_registrar(
    settings: Settings, stop: asyncio.Event, metrics: WorkerMetrics | None = None, *, tracer: "Tracer | None" = None
) -> None:
    """Run a registrar until `stop` is set."""
    engine = make_engine(
        settings.model_copy(update={"lock_timeout": min(settings.lock_timeout or LOCK_TIMEOUT, LOCK_TIMEOUT)}),
        application_name="podium-registrar",
        pool_size=CONNECTIONS[WorkerName.REGISTRAR],
    )
    async with _disposed(engine), OutboxNotifier(engine) as notifier:
        await Registrar(settings, Sessions(engine, on_events=notifier.notify), metrics, tracer).run(stop)


async def run_relay(
    settings: Settings, stop: asyncio.Event, metrics: WorkerMetrics | None = None, *, tracer: "Tracer | None" = None
) -> None:
    """Run a relay until `stop` is set."""
    engine = make_engine(
        settings,
        application_name="podium-relay",
        pool_size=CONNECTIONS[WorkerName.RELAY],
        idle_session_timeout=IDLE_SESSION_TIMEOUT,
    )
    async with _disposed(engine):
        await Relay(settings, engine, metrics, tracer).run(stop)


async def run_drainer(settings: Settings, stop: asyncio.Event, metrics: WorkerMetrics | None = None) -> None:
    """Run a drainer until `stop` is set."""
    engine = make_engine(settings, application_name="podium-drainer", pool_size=CONNECTIONS[WorkerName.DRAINER])
    async with _disposed(engine):
        await Drainer(settings, Sessions(engine), metrics).run(stop)


async def run_janitor(settings: Settings, stop: asyncio.Event, metrics: WorkerMetrics | None = None) -> None:
    """Run a janitor, health checks and retention, until `stop` is set."""
    engine = make_engine(settings, application_name="podium-janitor", pool_size=CONNECTIONS[WorkerName.JANITOR])
    async with _disposed(engine), OutboxNotifier(engine) as notifier, asyncio.TaskGroup() as group:
        sessions = Sessions(engine, on_events=notifier.notify)
        group.create_task(Janitor(settings, sessions, metrics).run(stop))
        group.create_task(Sweeper(settings, sessions, metrics).run(stop))


async def run_webhooks(settings: Settings, stop: asyncio.Event, metrics: WorkerMetrics | None = None) -> None:
    """Deliver events to webhooks until `stop` is set."""
    engine = make_engine(
        settings.model_copy(update={"lock_timeout": min(settings.lock_timeout, WEBHOOK_LOCK_TIMEOUT)}),
        application_name="podium-webhooks",
        pool_size=CONNECTIONS[WorkerName.WEBHOOKS],
    )
    async with _disposed(engine), OutboxNotifier(engine) as notifier:
        await Deliverer(settings, engine, Sessions(engine, on_events=notifier.notify), metrics).run(stop)


@asynccontextmanager
async def _disposed(engine: AsyncEngine) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await close_engine(engine)


@asynccontextmanager
async def stopped_by_signals() -> AsyncIterator[asyncio.Event]:
    """An event that the first SIGTERM or Ctrl-C sets; the second one has its default action, which ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def on_first_signal() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, on_first_signal)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
