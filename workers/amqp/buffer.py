"""The delivery buffer: messages that one connection has delivered and that are not yet decided."""

import asyncio
from collections import deque

from aio_pika.abc import AbstractIncomingMessage


class DeliveryBuffer:
    """Messages of one connection that are delivered and not yet decided, in delivery order."""

    def __init__(self) -> None:
        self.messages: deque[AbstractIncomingMessage] = deque()
        self.changed = asyncio.Event()
        """Set when a message is added and when the buffer is closed. The consumer clears it."""
        self.closed = False

    def put(self, message: AbstractIncomingMessage) -> None:
        """Add a delivered message."""
        self.messages.append(message)
        self.changed.set()

    def close(self, *_: object) -> None:
        """Mark the connection as lost: no message follows, and the broker redelivers those in the buffer.

        Takes any arguments, so that it can be used as a callback.
        """
        self.closed = True
        self.changed.set()

    def take(self, count: int) -> list[AbstractIncomingMessage]:
        """Remove and return the oldest messages, at most `count` of them."""
        return [self.messages.popleft() for _ in range(min(count, len(self.messages)))]
