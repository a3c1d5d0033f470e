"""A consumer of a queue, which fills a delivery buffer.

It takes messages from the channel itself: what the client library and FastStream put above it for each message took a
quarter of the time of a registration.
"""

from typing import Self

import structlog
from aio_pika.abc import AbstractQueue
from aiormq.abc import AbstractChannel, DeliveredMessage
from msgspec.structs import replace

from services.registration.dead_letters import DEATHS_HEADER
from workers.amqp.buffer import DeliveryBuffer
from workers.amqp.connection import CLOSE_SECONDS, CONNECT_SECONDS
from workers.amqp.decoding import UNREADABLE_HEADER
from workers.amqp.delivery import Delivery
from workers.retry import at_most

# RabbitMQ 3.10 stops moving dead letters of a queue for good at a header of its own with other contents. Unreadable
# headers may contain it.
_MAY_STOP_DEAD_LETTERS = frozenset({DEATHS_HEADER, UNREADABLE_HEADER})

log = structlog.get_logger(__name__)


class Consumer:
    """Moves the deliveries of one channel into the buffer. The end of the channel closes the buffer."""

    def __init__(
        self, queue: AbstractQueue, channel: AbstractChannel, buffer: DeliveryBuffer, max_bytes: int | None
    ) -> None:
        self._queue = queue
        self._channel = channel
        self._buffer = buffer
        self._max_bytes = max_bytes
        self._consumer_tag: str | None = None
        self._last = 0
        channel.on_consumer_cancel_callbacks.add(buffer.close)
        channel.closing.add_done_callback(buffer.close)

    @classmethod
    async def of(cls, queue: AbstractQueue, buffer: DeliveryBuffer, *, max_bytes: int | None = None) -> Self:
        """A consumer of this queue that has not started.

        A larger message than `max_bytes` goes to the dead letters. If its publisher has set the broker's own header of
        dead letters, or unreadable ones, it is delivered instead, with one byte more than `max_bytes` of its body.
        """
        return cls(queue, await queue.channel.get_underlay_channel(), buffer, max_bytes)

    @property
    def is_consuming(self) -> bool:
        """Whether it has started, and not stopped since."""
        return self._consumer_tag is not None

    async def start(self) -> None:
        """Consume. Raises `AMQPError` or `OSError`, also if the broker does not answer."""
        consuming = await self._channel.basic_consume(self._queue.name, self._receive, timeout=CONNECT_SECONDS)
        self._consumer_tag = consuming.consumer_tag

    async def stop(self) -> None:
        """Stop the deliveries; those already delivered stay in the buffer."""
        if self._consumer_tag is not None:
            tag, self._consumer_tag = self._consumer_tag, None
            await at_most(CLOSE_SECONDS, self._channel.basic_cancel(tag))

    async def _receive(self, message: DeliveredMessage) -> None:
        """Put the message into the buffer.

        An acknowledgement can include all earlier deliveries of the channel. So if one of them has not come, this
        connection is given up, and the broker delivers all again.
        """
        delivery = Delivery.of(message)
        if delivery.tag != self._last + 1:
            if not self._buffer.closed:
                log.warning("A delivery was not read; reconnecting.", action="amqp.delivery_missing", tag=delivery.tag)
                self._buffer.close()
            return
        self._last = delivery.tag
        if self._max_bytes is None or len(delivery.body) <= self._max_bytes:
            self._buffer.put(delivery)
        elif not _MAY_STOP_DEAD_LETTERS.isdisjoint(delivery.headers):
            self._buffer.put(replace(delivery, body=delivery.body[: self._max_bytes + 1]))
        else:
            await delivery.dead_letter()
