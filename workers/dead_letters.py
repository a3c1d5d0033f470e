"""The drainer: what the broker itself gave up on goes from its dead letters into the table of parked messages.

Several of them, in any number of processes, are safe: the broker gives each message to one of them at a time, and one
that comes again, since it was not acknowledged, is known by its id.
"""

import asyncio

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import AMQPConnectionError

from contracts.topology import PARKED_QUEUE
from services.cancellation import lost_as
from services.registration.dead_letters import dead_letter
from services.registration.parked import Envelope, park
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from workers.amqp.buffer import DeliveryBuffer
from workers.amqp.connection import CONNECT_SECONDS, LOST, connected
from workers.amqp.decoding import read_anything
from workers.fault import cannot_park
from workers.outage import Outage
from workers.retry import pause

PREFETCH = 20
IDLE_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Drainer:
    """Takes dead letters until told to stop."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions
        self._outage = Outage(action="drainer.disconnected", back="drainer.connected")

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; survives the loss of both servers."""
        read_anything()
        while not stop.is_set():
            try:
                with lost_as(AMQPConnectionError(LOST)):
                    await self._work(stop)
            except Exception as error:  # noqa: BLE001 - whatever it was, nothing was acknowledged: it all comes again
                await pause(stop, self._outage.failed(error))

    async def _work(self, stop: asyncio.Event) -> None:
        """One connection's life: each message is kept first, acknowledged then."""
        hand = DeliveryBuffer()

        async def take(message: AbstractIncomingMessage) -> None:
            hand.put(message)

        async with connected(self._settings.amqp_url.get_secret_value()) as broker:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    channel = await broker.channel()
                    await channel.set_qos(prefetch_count=PREFETCH)
                    await (await channel.get_queue(PARKED_QUEUE)).consume(take)
            except TimeoutError as error:
                raise AMQPConnectionError(f"The broker gave no answer within {CONNECT_SECONDS:.0f} s.") from error
            self._outage.over()
            while not stop.is_set():
                if channel.is_closed:
                    raise AMQPConnectionError("The broker closed the channel.")
                hand.news.clear()
                for message in hand.take(1):
                    await self._keep(message)
                if not hand.messages:
                    await pause(stop, IDLE_SECONDS, hand.news)

    async def _keep(self, message: AbstractIncomingMessage) -> None:
        """Park one message; whoever looks sees it before the broker forgets it. One refused holds up no other."""
        envelope = Envelope(message.routing_key or "", message.body, dict(message.headers))
        refusal = dead_letter(envelope)
        try:
            await in_transaction(self._sessions, lambda session: park(session, [refusal]))
        except Exception as error:
            if cannot_park(error):
                raise
            log.exception("A dead letter cannot be parked; it stays with the broker.", action="drainer.refused")
            return
        await message.ack()
        log.warning(
            "The broker gave a message up; it is parked.",
            action="drainer.parked",
            message_id=str(refusal.message_id) if refusal.message_id else None,
            agent=refusal.agent_name,
            why=refusal.error.message,
        )
