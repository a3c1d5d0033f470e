"""The registrar: decides the messages of the registrations queue in batches, one transaction per batch.

A message is acknowledged only after the transaction that decided it is committed. A message that was decided but not
acknowledged is redelivered, and its outcome is then `Duplicate`. Messages of an agent that another transaction has
locked are deferred: they wait, unacknowledged, while messages of other agents are decided.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from aio_pika.exceptions import AMQPConnectionError

from services.registration.batch import Terms
from services.settings import Settings
from services.storage.database import Sessions
from services.tls import broker_url
from workers.amqp.buffer import DeliveryBuffer
from workers.amqp.connection import CLOSE_SECONDS
from workers.amqp.decoding import tolerate_invalid_properties
from workers.amqp.delivery import Delivery
from workers.metrics import WorkerMetrics
from workers.registrar.batches import Decider
from workers.registrar.deferred import DeferredMessages
from workers.registrar.deliveries import SecondConsumer, consuming, prefetch_of
from workers.registrar.replies import Replies
from workers.registrar.settling import Acknowledgements, Records, Settler
from workers.retry import Outage, ended, pause, run_with_retries

if TYPE_CHECKING:
    from services.tracing.tracer import Tracer

# How long a batch waits for a lock. Longer than usual transactions, so that a busy agent is not deferred; shorter than
# what callers notice, since the batch holds the locks of its other agents meanwhile.
LOCK_TIMEOUT = timedelta(milliseconds=100)
# The pause between attempts to decide deferred messages.
DEFERRED_SECONDS = 0.1
# The bodies of a batch. Parsed, they can take some tens of times as much memory.
BATCH_MAX_BYTES = 1024 * 1024
# The longest wait of an idle registrar. A delivery, a lost connection or the stop signal ends it earlier.
IDLE_SECONDS = 60.0
BROKER_HINT = "Check that RabbitMQ is running and that 'podium migrate' has declared the queues."

log = structlog.get_logger(__name__)


class StartRefused(Exception):
    """The registrar refuses to start with these settings."""


def signing_secret(settings: Settings) -> str | None:
    """The secret key from which the signing keys are derived; None if signatures are not required.

    Raises `StartRefused` with a sentence that names the variable to set.
    """
    if not settings.require_signed_announcements:
        return None
    secret_key = settings.secret_key.get_secret_value()
    if not secret_key:
        raise StartRefused(
            "The registrar refuses to start: PODIUM_REQUIRE_SIGNED_ANNOUNCEMENTS is set, and without "
            "PODIUM_SECRET_KEY, with the value of the API processes, it cannot check a signature."
        )
    return secret_key


class Registrar:
    """Consumes registrations until it is stopped. Any number of registrars, in any number of processes, can run."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        metrics: WorkerMetrics | None = None,
        tracer: "Tracer | None" = None,
    ) -> None:
        """`sessions` must have a lock timeout of at most `LOCK_TIMEOUT`."""
        self._settings = settings
        self._metrics = metrics or WorkerMetrics()
        self._tracer = tracer
        self._decider = Decider(sessions, Terms.of(settings), tracer)
        self._decider_of_deferred = Decider(sessions, Terms.of(settings), tracer)
        self._records = Records(Acknowledgements(), self._metrics)
        self._signed_with = signing_secret(settings)
        self._outage = Outage(failure_action="registrar.disconnected", recovery_action="registrar.connected")
        self._metrics.watch("registrar", self._outage)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then decide the messages already received; reconnects after an outage."""
        tolerate_invalid_properties()
        await run_with_retries(stop, self._work, self._outage, hint=BROKER_HINT)

    async def _work(self, stop: asyncio.Event) -> None:
        """Decide messages on one connection until it is lost or `stop` is set.

        A lost connection does not interrupt a transaction: the broker redelivers its messages on the next connection,
        where they are duplicates.
        """
        buffer, deferred = DeliveryBuffer(), DeferredMessages()
        prefetch = prefetch_of(self._settings)
        async with (
            consuming(self._settings, buffer) as consumer,
            SecondConsumer(self._settings, buffer) as more,
            self._replies() as replies,
            self._deciding_deferred(deferred, buffer),
        ):
            self._outage.over()
            log.info("Consuming registrations.", action="registrar.started", prefetch=prefetch)
            settler = self._settler(self._decider, deferred, replies)
            while not (stop.is_set() or buffer.closed):
                if len(deferred) >= prefetch // 2:
                    await more.start()
                elif not deferred:
                    await more.stop()
                batch = await self._next_batch(buffer, stop)
                await settler.settle(deferred.divert(batch), stop)
            if buffer.closed:
                raise AMQPConnectionError("The broker closed the connection or cancelled the consumer.")
            await consumer.stop()
            await more.stop()
            while batch := buffer.take(self._settings.batch_size, BATCH_MAX_BYTES):
                if not await settler.settle(deferred.divert(batch), stop):
                    return

    def _settler(self, decider: Decider, deferred: DeferredMessages, replies: Replies) -> Settler:
        return Settler(decider, self._records, deferred, replies, signed_with=self._signed_with, tracer=self._tracer)

    def _replies(self) -> Replies:
        return Replies(broker_url(self._settings))

    async def _next_batch(self, buffer: DeliveryBuffer, stop: asyncio.Event) -> list[Delivery]:
        """Wait for messages, then a short time for more of them; returns at most one batch, possibly an empty one."""
        buffer.changed.clear()
        if not buffer.messages:
            await pause(stop, IDLE_SECONDS, buffer.changed)
        if buffer.messages and len(buffer.messages) < self._settings.batch_size:
            await asyncio.sleep(self._settings.batch_linger.total_seconds())
        return buffer.take(self._settings.batch_size, BATCH_MAX_BYTES)

    @asynccontextmanager
    async def _deciding_deferred(self, deferred: DeferredMessages, buffer: DeliveryBuffer) -> AsyncIterator[None]:
        """A task that decides deferred messages. If it fails, it closes the buffer, and its error is raised on exit."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._decide_deferred(deferred, stop), name="registrar.deferred")
        task.add_done_callback(buffer.close)
        try:
            yield
        except asyncio.CancelledError:
            await ended(task, CLOSE_SECONDS)
            raise
        finally:
            stop.set()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    async def _decide_deferred(self, deferred: DeferredMessages, stop: asyncio.Event) -> None:
        async with self._replies() as replies:
            settler = self._settler(self._decider_of_deferred, deferred, replies)
            while not stop.is_set():
                deferred.added.clear()
                if batch := deferred.next_batch(self._settings.batch_size, BATCH_MAX_BYTES):
                    await settler.settle(batch, stop)
                    await pause(stop, DEFERRED_SECONDS if deferred else 0)
                else:
                    await pause(stop, IDLE_SECONDS, deferred.added)
