"""The relay: events that were committed reach the broker, each agent's in sequence order, at least once.

One relay works at a time, the one whose database session holds the lock; others wait for it to end. All its queries
run on that session, so that whatever ends the session ends the work too.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import timedelta
from itertools import groupby
from time import monotonic
from typing import Any, TypeVar
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
from services.events.outbox import WAKE_CHANNEL, claim, envelope, mark_published, prove_alive, try_lock
from services.settings import Settings
from workers.amqp.connection import CONNECT_SECONDS, LOST, connected
from workers.outage import Outage
from workers.retry import backoff, pause

# A stopped process keeps its lock; the server ends its session after this time without a query.
IDLE_SESSION_TIMEOUT = timedelta(seconds=5)
# Far below it: whoever publishes has proved within this time that the session lives.
PROOF_VALID_SECONDS = 1.0
PROOF_INTERVAL_SECONDS = 0.4
# With the timeout above: the longest that nobody publishes after the owner of the lock froze.
LOCK_POLL_SECONDS = 0.25
CHANNEL_CLOSED = "The broker closed the channel."
T = TypeVar("T")

log = structlog.get_logger(__name__)
Rows = Sequence[Row[*tuple[Any, ...]]]


class Relay:
    """Publishes the outbox until told to stop."""

    def __init__(self, settings: Settings, engine: AsyncEngine) -> None:
        """`engine` ends idle sessions after `IDLE_SESSION_TIMEOUT` and is the relay's alone."""
        self._settings = settings
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._proved_at = 0.0
        self._events_wait = asyncio.Event()
        self._outage = Outage(action="relay.disconnected", back="relay.connected")
        self._held_back: dict[UUID, tuple[float, int]] = {}  # agent: not before, failures in a row

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; survives the loss of both servers and of the lock."""
        while not stop.is_set():
            try:
                with lost_as(AMQPConnectionError(LOST)):
                    await self._work(stop)
            except Exception as error:  # noqa: BLE001 - whatever it was, what is not marked is published again
                await pause(stop, self._outage.failed(error))

    async def _work(self, stop: asyncio.Event) -> None:
        """One session's life: wait for the lock, then publish."""
        async with (
            connected(self._settings.amqp_url.get_secret_value()) as broker,
            self._engine.connect() as session,
        ):
            channel, exchange = await _events_exchange(broker)
            self._outage.over()
            if not await self._own_lock(session, channel, stop):
                return
            await self._listen(session)
            log.info("Publishing events.", action="relay.started")
            while not stop.is_set():
                if channel.is_closed:
                    raise AMQPConnectionError(CHANNEL_CLOSED)
                await self._round(session, exchange, stop)

    async def _own_lock(self, session: AsyncConnection, channel: AbstractChannel, stop: asyncio.Event) -> bool:
        """Wait for the lock; whether this session has it, which it keeps until it ends."""
        standing_by = False
        while not await try_lock(session):
            if not standing_by:
                log.info("Another relay publishes; standing by.", action="relay.standing_by")
            standing_by = True
            if channel.is_closed:
                raise AMQPConnectionError(CHANNEL_CLOSED)
            await pause(stop, LOCK_POLL_SECONDS)
            if stop.is_set():
                return False
        return True

    async def _listen(self, session: AsyncConnection) -> None:
        """Have notifications wake this relay; they come on the same session."""
        driver = (await session.get_raw_connection()).driver_connection
        if driver is None:
            raise ConnectionError("The database session is gone.")
        await driver.add_listener(WAKE_CHANNEL, lambda *_: self._events_wait.set())

    async def _round(self, session: AsyncConnection, exchange: AbstractExchange, stop: asyncio.Event) -> None:
        """Publish what waits, or wait for something to publish."""
        self._events_wait.clear()
        now = monotonic()
        held_back = [agent for agent, (until, _) in self._held_back.items() if until > now]
        rows = await self._proving(claim(session, self._settings.relay_batch_size, held_back))
        if not rows:
            await pause(stop, self._settings.relay_poll.total_seconds(), self._events_wait)
            return
        published = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_proving(session, published))
            confirmed = await self._publish(rows, exchange)
            published.set()
        if confirmed:
            await self._proving(mark_published(session, confirmed))
        else:
            await pause(stop, self._settings.relay_poll.total_seconds())
        log.info(
            "Published events.", action="relay.published", events=len(confirmed), waiting=len(rows) - len(confirmed)
        )

    async def _publish(self, rows: Rows, exchange: AbstractExchange) -> list[int]:
        """The ids of the events that the broker confirmed: agents side by side, each agent's events one by one."""
        by_agent = [list(group) for _, group in groupby(sorted(rows, key=_agent_then_sequence), key=_agent)]
        confirmed = await asyncio.gather(*(self._publish_agent(events, exchange) for events in by_agent))
        return [each for ids in confirmed for each in ids]

    async def _publish_agent(self, events: Rows, exchange: AbstractExchange) -> list[int]:
        """Up to the first that is not confirmed: a later event must never overtake it."""
        confirmed: list[int] = []
        agent_id = events[0].agent_id
        for event in events:
            if monotonic() - self._proved_at > PROOF_VALID_SECONDS:
                break
            try:
                with lost_as(AMQPConnectionError(LOST)):
                    async with asyncio.timeout(self._settings.publish_timeout.total_seconds()):
                        await exchange.publish(
                            _message(event), event_key(event.type, event.agent_name), mandatory=False
                        )
            except Exception as error:  # noqa: BLE001 - also an event that cannot be written: it must not stop others
                self._hold_back(agent_id, event, error)
                return confirmed
            confirmed.append(event.id)
        self._held_back.pop(agent_id, None)
        return confirmed

    def _hold_back(self, agent_id: UUID, event: Row[*tuple[Any, ...]], error: Exception) -> None:
        failures = self._held_back.get(agent_id, (0.0, 0))[1] + 1
        self._held_back[agent_id] = (monotonic() + backoff(failures), failures)
        log.warning(
            "The broker did not take an event; this agent's events wait.",
            action="relay.held_back",
            agent_id=str(agent_id),
            sequence=event.sequence,
            error=f"{type(error).__name__}: {error}"[:300],
        )

    async def _proving(self, query: Awaitable[T]) -> T:
        """The query's result; its success proves that the session held the lock when it was sent."""
        sent_at = monotonic()
        result = await query
        self._proved_at = sent_at
        return result

    async def _keep_proving(self, session: AsyncConnection, published: asyncio.Event) -> None:
        while not published.is_set():
            await pause(published, PROOF_INTERVAL_SECONDS)
            if not published.is_set():
                await self._proving(prove_alive(session))


async def _events_exchange(broker: AbstractConnection) -> tuple[AbstractChannel, AbstractExchange]:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            channel = await broker.channel(publisher_confirms=True)
            return channel, await channel.get_exchange(EVENTS_EXCHANGE, ensure=True)
    except TimeoutError as error:
        raise AMQPConnectionError(f"The broker gave no answer within {CONNECT_SECONDS:.0f} s.") from error


def _agent(row: Row[*tuple[Any, ...]]) -> UUID:
    return UUID(str(row.agent_id))


def _agent_then_sequence(row: Row[*tuple[Any, ...]]) -> tuple[UUID, int]:
    return _agent(row), int(row.sequence)


def _message(row: Row[*tuple[Any, ...]]) -> Message:
    event = envelope(row)
    headers = {"traceparent": event.traceparent} if event.traceparent is not None else {}
    return Message(
        event.model_dump_json(exclude_none=True).encode(),
        content_type=CONTENT_TYPE,
        message_id=str(event.id),
        type=event.type,
        headers=dict(headers),
        delivery_mode=DeliveryMode.PERSISTENT,
    )
