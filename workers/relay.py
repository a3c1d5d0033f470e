"""The relay: publishes committed events, at least once, each agent's events in sequence order.

One relay publishes at a time: the one whose database session holds the advisory lock. Other relays wait for the lock.
The relay runs all its queries on that session, so it cannot continue after it has lost the lock with the session.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import groupby
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.exceptions import AMQPConnectionError
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.events import CONTENT_TYPE
from contracts.topology import EVENTS_EXCHANGE, event_key
from services.cancellation import lost_as
from services.events.epochs import adopt_cluster
from services.events.outbox import WAKE_CHANNEL, claim, envelope, mark_published, prove_alive, try_lock
from services.settings import Settings
from services.tls import broker_url
from workers.amqp.connection import CHANNEL_CLOSED, CONNECT_SECONDS, NO_ANSWER, connected
from workers.metrics import WorkerMetrics
from workers.relay_spans import publish_span
from workers.retry import CONNECTION_LOST, Outage, backoff, pause, run_with_retries

if TYPE_CHECKING:
    from services.tracing.tracer import Tracer

# A frozen process keeps its lock until PostgreSQL ends its session after this time without a query.
IDLE_SESSION_TIMEOUT = timedelta(seconds=5)
# The relay publishes only if a query succeeded on its session within this time. Far below the timeout above, so that no
# other relay can hold the lock by then.
PROOF_VALID_SECONDS = 1.0
PROOF_INTERVAL_SECONDS = 0.4
# After the lock's owner froze, nothing is published for at most the idle timeout plus this.
LOCK_POLL_SECONDS = 0.25
T = TypeVar("T")

log = structlog.get_logger(__name__)
Rows = Sequence[Row[*tuple[Any, ...]]]


class Relay:
    """Publishes the events of the outbox until it is stopped."""

    def __init__(
        self,
        settings: Settings,
        engine: AsyncEngine,
        metrics: WorkerMetrics | None = None,
        tracer: "Tracer | None" = None,
    ) -> None:
        """`engine` must end idle sessions after `IDLE_SESSION_TIMEOUT`, and nothing else may use it."""
        self._tracer = tracer
        self._settings = settings
        self._transactions = engine
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._proved_at = 0.0
        self._woken = asyncio.Event()
        self._outage = Outage(failure_action="relay.disconnected", recovery_action="relay.connected")
        self._metrics = metrics or WorkerMetrics()
        self._metrics.watch("relay", self._outage)
        self._held_back: dict[UUID, tuple[float, int]] = {}  # agent: (retry at, failures in a row)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; starts again after the loss of either server or of the lock."""
        await run_with_retries(stop, self._work, self._outage)

    async def _work(self, stop: asyncio.Event) -> None:
        """Wait for the lock on one database session, then publish."""
        async with connected(broker_url(self._settings)) as broker, self._session() as session:
            channel, exchange = await _events_exchange(broker)
            self._outage.over()
            if not await self._acquire_lock(session, channel, stop):
                return
            await self._listen(session)
            log.info("Publishing events.", action="relay.started")
            with self._metrics.relay_active.track_inprogress():
                while not stop.is_set():
                    if channel.is_closed:
                        raise AMQPConnectionError(CHANNEL_CLOSED)
                    await self._publish_next(session, exchange, stop)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[AsyncConnection]:
        """A session for the lock; each new one could be of another cluster."""
        async with self._transactions.begin() as connection:
            restored = await adopt_cluster(connection)
        if restored:
            log.warning(
                "The data come from another database cluster: cursors of event streams issued there get 410.",
                action="relay.cluster_changed",
            )
        async with self._engine.connect() as session:
            yield session

    async def _acquire_lock(self, session: AsyncConnection, channel: AbstractChannel, stop: asyncio.Event) -> bool:
        """Wait until this session holds the lock, which it keeps until it ends; False if `stop` was set first."""
        standing_by = False
        while not await try_lock(session):
            if not standing_by:
                log.info("Another relay is publishing; waiting for the lock.", action="relay.standing_by")
            standing_by = True
            if channel.is_closed:
                raise AMQPConnectionError(CHANNEL_CLOSED)
            await pause(stop, LOCK_POLL_SECONDS)
            if stop.is_set():
                return False
        return True

    async def _listen(self, session: AsyncConnection) -> None:
        """Let notifications of new events wake this relay; they arrive on the same session."""
        driver = (await session.get_raw_connection()).driver_connection
        if driver is None:
            raise ConnectionError("The database session was lost.")
        await driver.add_listener(WAKE_CHANNEL, lambda *_: self._woken.set())

    async def _publish_next(self, session: AsyncConnection, exchange: AbstractExchange, stop: asyncio.Event) -> None:
        """Publish and mark one batch of events, or wait for events if there are none."""
        self._woken.clear()
        now = monotonic()
        held_back = [agent for agent, (until, _) in self._held_back.items() if until > now]
        rows = await self._proving(claim(session, self._settings.relay_batch_size, held_back))
        if not rows:
            await pause(stop, self._settings.relay_poll.total_seconds(), self._woken)
            return
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_proving(session, done))
            confirmed = await self._publish(rows, exchange)
            done.set()
        if confirmed:
            self._metrics.events_published.inc(len(confirmed))
            await self._proving(mark_published(session, confirmed))
        else:
            await pause(stop, self._settings.relay_poll.total_seconds())
        log.info(
            "Published events.", action="relay.published", events=len(confirmed), waiting=len(rows) - len(confirmed)
        )

    async def _publish(self, rows: Rows, exchange: AbstractExchange) -> list[int]:
        """Publish events of different agents concurrently, those of one agent one by one; returns the confirmed ids."""
        by_agent = [list(group) for _, group in groupby(sorted(rows, key=_agent_then_sequence), key=_agent)]
        confirmed = await asyncio.gather(*(self._publish_agent(events, exchange) for events in by_agent))
        return [event_id for ids in confirmed for event_id in ids]

    async def _publish_agent(self, events: Rows, exchange: AbstractExchange) -> list[int]:
        """Publish one agent's events in order until one is not confirmed; returns the confirmed ids."""
        confirmed: list[int] = []
        agent_id = events[0].agent_id
        for event in events:
            if monotonic() - self._proved_at > PROOF_VALID_SECONDS:
                break
            try:
                await self._publish_event(event, exchange)
            except Exception as error:  # noqa: BLE001 - also an event that cannot be encoded must not stop other agents
                self._hold_back(agent_id, event, error)
                return confirmed
            confirmed.append(event.id)
        self._held_back.pop(agent_id, None)
        return confirmed

    async def _publish_event(self, event: Row[*tuple[Any, ...]], exchange: AbstractExchange) -> None:
        """Publish one event and wait for the broker's confirm."""
        with (
            publish_span(self._tracer, event) as traceparent,
            lost_as(AMQPConnectionError(CONNECTION_LOST)),
        ):
            async with asyncio.timeout(self._settings.publish_timeout.total_seconds()):
                message = _message(event, traceparent)
                await exchange.publish(message, event_key(event.type, event.agent_name), mandatory=False)

    def _hold_back(self, agent_id: UUID, event: Row[*tuple[Any, ...]], error: Exception) -> None:
        failures = self._held_back.get(agent_id, (0.0, 0))[1] + 1
        self._held_back[agent_id] = (monotonic() + backoff(failures), failures)
        log.warning(
            "Could not publish an event; the agent's later events wait.",
            action="relay.held_back",
            agent_id=str(agent_id),
            sequence=event.sequence,
            error=f"{type(error).__name__}: {error}"[:300],
        )

    async def _proving(self, query: Awaitable[T]) -> T:
        """The query's result; its success proves that the session still held the lock when the query was sent."""
        sent_at = monotonic()
        result = await query
        self._proved_at = sent_at
        return result

    async def _keep_proving(self, session: AsyncConnection, done: asyncio.Event) -> None:
        """Query the session at short intervals until `done` is set, so that the proof stays valid while publishing."""
        while not done.is_set():
            await pause(done, PROOF_INTERVAL_SECONDS)
            if not done.is_set():
                await self._proving(prove_alive(session))


async def _events_exchange(broker: AbstractConnection) -> tuple[AbstractChannel, AbstractExchange]:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            channel = await broker.channel(publisher_confirms=True)
            return channel, await channel.get_exchange(EVENTS_EXCHANGE, ensure=True)
    except TimeoutError as error:
        raise AMQPConnectionError(NO_ANSWER) from error


def _agent(row: Row[*tuple[Any, ...]]) -> UUID:
    return UUID(str(row.agent_id))


def _agent_then_sequence(row: Row[*tuple[Any, ...]]) -> tuple[UUID, int]:
    return _agent(row), int(row.sequence)


def _message(row: Row[*tuple[Any, ...]], traceparent: str | None) -> Message:
    event = envelope(row)
    headers = {"traceparent": traceparent} if traceparent is not None else {}
    return Message(
        event.model_dump_json(exclude_none=True).encode(),
        content_type=CONTENT_TYPE,
        message_id=str(event.id),
        type=event.type,
        headers=dict(headers),
        delivery_mode=DeliveryMode.PERSISTENT,
    )
