"""What a worker holds of one connection's messages."""

import asyncio
from collections import deque

from aio_pika.abc import AbstractIncomingMessage


class DeliveryBuffer:
    """Messages of one connection that have come and are not yet decided."""

    def __init__(self) -> None:
        self.messages: deque[AbstractIncomingMessage] = deque()
        self.news = asyncio.Event()
        """Something has come, or nothing will any more."""
        self.closed = False

    def put(self, message: AbstractIncomingMessage) -> None:
        """One more has come."""
        self.messages.append(message)
        self.news.set()

    def close(self, *_: object) -> None:
        """No more will come, and what is here comes again elsewhere."""
        self.closed = True
        self.news.set()

    def take(self, count: int) -> list[AbstractIncomingMessage]:
        """The oldest so many, or all."""
        return [self.messages.popleft() for _ in range(min(count, len(self.messages)))]
