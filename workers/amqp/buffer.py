"""The delivery buffer: messages that one connection has delivered and that are not yet decided."""

import asyncio
from collections import deque
from collections.abc import Iterable
from itertools import islice

from workers.amqp.delivery import Delivery


class DeliveryBuffer:
    """Messages of one connection that are delivered and not yet decided, in delivery order."""

    def __init__(self) -> None:
        self.messages: deque[Delivery] = deque()
        self.changed = asyncio.Event()
        """Set when a message is added and when the buffer is closed. The consumer clears it."""
        self.closed = False

    def put(self, message: Delivery) -> None:
        """Add a delivered message."""
        self.messages.append(message)
        self.changed.set()

    def close(self, *_: object) -> None:
        """Mark the connection as lost: no message follows, and the broker redelivers those in the buffer.

        Takes any arguments, so that it can be used as a callback.
        """
        self.closed = True
        self.changed.set()

    def take(self, count: int, max_bytes: int) -> list[Delivery]:
        """Remove and return the oldest messages: at most `count`, and at most `max_bytes` unless the first has more."""
        taken = first_messages(self.messages, count, max_bytes)
        for _ in taken:
            self.messages.popleft()
        return taken


def first_messages(messages: Iterable[Delivery], count: int, max_bytes: int) -> list[Delivery]:
    """The first messages: at most `count`, and at most `max_bytes` in all bodies unless the first one has more."""
    taken: list[Delivery] = []
    size = 0
    for message in islice(messages, count):
        size += len(message.body)
        if taken and size > max_bytes:
            break
        taken.append(message)
    return taken
