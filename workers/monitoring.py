"""The monitoring listener of a worker process: liveness, readiness and metrics over HTTP, if a port is set."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aio_pika.exceptions import AMQPError
from aiohttp import web
from prometheus_client import Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.topology import PARKED_QUEUE, REGISTRATIONS_QUEUE
from services.agents.metrics import forget_deleted
from services.settings import Settings
from services.storage.database import Sessions, close_engine, make_engine
from services.tls import broker_url
from services.webhooks.positions import webhook_states
from workers.amqp.connection import connected
from workers.metrics import WorkerMetrics

# Prometheus gives up after ten seconds by default.
SCRAPE_LIMIT_SECONDS = 3.0
WEBHOOK_STATUSES = ("active", "paused", "disabled")

_STATE = text("""
SELECT
    (SELECT count(*) FROM outbox WHERE published_at IS NULL),
    (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
        FROM outbox WHERE published_at IS NULL),
    (SELECT count(*) FROM (SELECT FROM parked LIMIT 100000) AS p),
    (SELECT count(*) FROM deployments WHERE is_production AND status = 'Failed')
""")

log = structlog.get_logger(__name__)


class Monitor:
    """Answers `/health/live`, `/health/ready` and `/metrics` of one worker process."""

    def __init__(self, settings: Settings, engine: AsyncEngine, metrics: WorkerMetrics) -> None:
        self._settings = settings
        self._sessions = Sessions(engine)
        self._metrics = metrics
        registry = metrics.registry
        self._outbox_events = Gauge("podium_outbox_unpublished_events", "Events not published yet.", registry=registry)
        self._outbox_age = Gauge(
            "podium_outbox_oldest_seconds", "Age of the oldest event not published yet.", registry=registry
        )
        self._parked = Gauge("podium_parked_messages", "Parked messages; counted up to 100,000.", registry=registry)
        self._failed = Gauge(
            "podium_production_failed", "Agents whose deployment in production is Failed.", registry=registry
        )
        self._webhooks = Gauge("podium_webhooks", "Webhooks, by status.", ["status"], registry=registry)
        self._webhook_lag = Gauge(
            "podium_webhook_oldest_seconds",
            "Age of the oldest event that an active webhook waits for.",
            registry=registry,
        )
        self._waiting = Gauge(
            "podium_queue_messages", "Messages that wait in a queue of the broker.", ["queue"], registry=registry
        )
        self._consumers = Gauge(
            "podium_queue_consumers", "Consumers of a queue of the broker.", ["queue"], registry=registry
        )
        self._working = Gauge(
            "podium_worker_ready",
            "1 if this worker has worked, and waits for no server.",
            ["worker"],
            registry=registry,
        )

    def application(self) -> web.Application:
        """The HTTP application."""
        app = web.Application()
        app.router.add_get("/health/live", self._live)
        app.router.add_get("/health/ready", self._ready)
        app.router.add_get("/metrics", self._measure)
        return app

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def _ready(self, _: web.Request) -> web.Response:
        """200 once each worker of the process has worked and while none has an outage, else 503."""
        workers = {name: outage.state for name, outage in self._metrics.outages.items()}
        ok = bool(workers) and all(state == "working" for state in workers.values())
        return web.json_response(
            {"status": "ready" if ok else "not ready", "workers": workers}, status=200 if ok else 503
        )

    async def _measure(self, _: web.Request) -> web.Response:
        """The metrics. Gauges that need a server which does not answer are NaN."""
        for name, outage in self._metrics.outages.items():
            self._working.labels(name).set(outage.state == "working")
        await asyncio.gather(self._read_database(), self._read_queues())
        return web.Response(body=generate_latest(self._metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _read_database(self) -> None:
        gauges = (self._outbox_events, self._outbox_age, self._parked, self._failed)
        values = [float("nan")] * len(gauges)
        webhooks = dict.fromkeys(WEBHOOK_STATUSES, float("nan"))
        lag = float("nan")
        try:
            async with asyncio.timeout(SCRAPE_LIMIT_SECONDS), self._sessions() as session:
                values = list((await session.execute(_STATE)).one())
                states = await webhook_states(session)
                await forget_deleted(session, self._metrics.labelled)
            webhooks = {status: sum(each.status == status for each in states) for status in WEBHOOK_STATUSES}
            ages = [age for each in states for age in (each.waiting_for, each.unread_for) if age is not None]
            lag = max([0.0, *(age.total_seconds() for age in ages)])
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.debug("Could not read the database.", action="monitoring.no_database", error=str(error)[:300])
        for gauge, value in zip(gauges, values, strict=True):
            gauge.set(value)
        self._webhook_lag.set(lag)
        for status, count in webhooks.items():
            self._webhooks.labels(status).set(count)

    async def _read_queues(self) -> None:
        waiting = dict.fromkeys((REGISTRATIONS_QUEUE, PARKED_QUEUE), (float("nan"), float("nan")))
        try:
            async with (
                asyncio.timeout(SCRAPE_LIMIT_SECONDS),
                connected(broker_url(self._settings)) as broker,
            ):
                channel = await broker.channel()
                for queue in waiting:
                    declared = (await channel.get_queue(queue)).declaration_result
                    waiting[queue] = declared.message_count or 0, declared.consumer_count or 0
        except (AMQPError, OSError, TimeoutError) as error:
            log.debug("Could not read the queues.", action="monitoring.no_broker", error=str(error)[:300])
        for queue, (messages, consumers) in waiting.items():
            self._waiting.labels(queue).set(messages)
            self._consumers.labels(queue).set(consumers)


@asynccontextmanager
async def monitored(settings: Settings, metrics: WorkerMetrics) -> AsyncIterator[None]:
    """Answer on `PODIUM_WORKER_PORT` while inside; do nothing if it is 0. Raises `OSError` if the port is in use."""
    if not settings.worker_port:
        yield
        return
    engine = make_engine(settings, application_name="podium-monitoring", pool_size=1)
    runner = web.AppRunner(Monitor(settings, engine, metrics).application(), access_log=None)
    try:
        await runner.setup()
        await web.TCPSite(runner, settings.worker_host, settings.worker_port).start()
        log.info(
            "Answering health checks and metrics.",
            action="monitoring.started",
            host=settings.worker_host,
            port=settings.worker_port,
        )
        yield
    finally:
        await runner.cleanup()
        await close_engine(engine)
