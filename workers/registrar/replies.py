"""Replies to pods that request one: only through RabbitMQ's direct reply-to, and without any effect on the outcome."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import structlog
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError
from pydantic_core import to_json

from services.cancellation import lost_as
from services.domain.announcement import Rejected
from services.registration.batch import Decided
from workers.amqp.connection import CLOSE_SECONDS, open_connection, with_heartbeat
from workers.amqp.delivery import Delivery
from workers.retry import at_most

# The queue of any other name could belong to another program.
DIRECT_REPLY = "amq.rabbitmq.reply-to."
TIMEOUT_SECONDS = 2

log = structlog.get_logger(__name__)


class Replies:
    """Sends outcomes on its own connection, which is opened for the first requested reply."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await at_most(CLOSE_SECONDS, self._connection.close())

    async def send(self, messages: Sequence[Delivery], decided: Sequence[Decided]) -> None:
        """Reply to the messages that request it. A failure is only logged, because the outcome is already committed."""
        requested = [
            (message, result)
            for message, result in zip(messages, decided, strict=True)
            if (message.reply_to or "").startswith(DIRECT_REPLY)
        ]
        if not requested:
            return
        try:
            with lost_as(ConnectionError()):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    channel = await self._open()
                    for message, result in requested:
                        reply = _reply(message, result)
                        await channel.default_exchange.publish(reply, message.reply_to or "", mandatory=False)
        except (AMQPError, OSError, RuntimeError) as error:
            log.info("Could not send a reply.", action="registrar.reply_lost", error=type(error).__name__)

    async def _open(self) -> AbstractChannel:
        if self._channel is None or self._channel.is_closed:
            if self._connection is None or self._connection.is_closed:
                self._connection = await open_connection(with_heartbeat(self._url), TIMEOUT_SECONDS)
            # Without confirms: a lost reply is acceptable, and must not delay the next batch.
            self._channel = await self._connection.channel(publisher_confirms=False)
        return self._channel


def _reply(request: Delivery, decided: Decided) -> Message:
    outcome = decided.outcome
    error = outcome.error if isinstance(outcome, Rejected) else None
    agent = decided.state.agent if decided.state is not None and error is None else None
    body = {
        "outcome": type(outcome).__name__,
        "reason": error.reason if error else None,
        "message": error.message if error else None,
        "agent_id": agent.id if agent else None,
        "generation": agent.generation if agent else None,
    }
    return Message(to_json(body), correlation_id=request.correlation_id, content_type="application/json")
