"""The drainer: moves dead letters from the broker into the table of parked messages.

Any number of drainers can run, in any number of processes: the broker delivers each message to one of them at a time.
A message that is redelivered because its acknowledgement was lost is recognised by its id.
"""

import asyncio

import structlog
from aio_pika.exceptions import AMQPConnectionError

from contracts.topology import PARKED_QUEUE
from services.registration.dead_letters import dead_letter
from services.registration.parked import Envelope, park
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from services.tls import broker_url
from workers.amqp.buffer import DeliveryBuffer
from workers.amqp.connection import CHANNEL_CLOSED, CONNECT_SECONDS, NO_ANSWER, connected
from workers.amqp.consumer import Consumer
from workers.amqp.decoding import tolerate_invalid_properties
from workers.amqp.delivery import Delivery
from workers.fault import cannot_park
from workers.metrics import WorkerMetrics
from workers.retry import Outage, pause, run_with_retries

# One body at a time in memory.
PREFETCH = 1
IDLE_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Drainer:
    """Parks dead letters until it is stopped."""

    def __init__(self, settings: Settings, sessions: Sessions, metrics: WorkerMetrics | None = None) -> None:
        self._settings = settings
        self._sessions = sessions
        self._outage = Outage(failure_action="drainer.disconnected", recovery_action="drainer.connected")
        self._metrics = metrics or WorkerMetrics()
        self._metrics.watch("drainer", self._outage)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; reconnects after the loss of either server."""
        tolerate_invalid_properties()
        await run_with_retries(stop, self._work, self._outage)

    async def _work(self, stop: asyncio.Event) -> None:
        """Consume on one connection: park each message, then acknowledge it.

        A message that cannot be parked uses up the prefetch of its consumer, so a new consumer on the same channel
        goes on with the next message.
        """
        buffer = DeliveryBuffer()
        async with connected(broker_url(self._settings)) as broker:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    channel = await broker.channel()
                    await channel.set_qos(prefetch_count=PREFETCH)
                    consumer = await Consumer.of(await channel.get_queue(PARKED_QUEUE), buffer)
                    await consumer.start()
            except TimeoutError as error:
                raise AMQPConnectionError(NO_ANSWER) from error
            self._outage.over()
            while not stop.is_set():
                if buffer.closed:
                    raise AMQPConnectionError(CHANNEL_CLOSED)
                buffer.changed.clear()
                if buffer.messages and not await self._park(buffer.messages.popleft()):
                    await consumer.stop()
                    await consumer.start()
                if not buffer.messages:
                    await pause(stop, IDLE_SECONDS, buffer.changed)

    async def _park(self, message: Delivery) -> bool:
        """Park one message, and acknowledge it after the commit; False if the database refuses it.

        A refused message stays unacknowledged until the connection ends.
        """
        envelope = Envelope(message.routing_key, message.body, dict(message.headers))
        refusal = dead_letter(envelope)
        try:
            await in_transaction(self._sessions, lambda session: park(session, [refusal]))
        except Exception as error:
            if cannot_park(error):
                raise
            log.error(  # noqa: TRY400 - the error says all, and many such messages may follow each other
                "Could not park a dead letter; it stays in its queue.",
                action="drainer.refused",
                message_id=str(refusal.message_id) if refusal.message_id else None,
                agent=refusal.agent_name,
                error=f"{type(error).__name__}: {error}"[:300],
            )
            return False
        await message.acknowledge(multiple=False)
        self._metrics.parked.inc()
        log.warning(
            "Parked a message that the broker had dead-lettered.",
            action="drainer.parked",
            message_id=str(refusal.message_id) if refusal.message_id else None,
            agent=refusal.agent_name,
            why=refusal.error.message,
        )
        return True
