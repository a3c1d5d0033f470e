"""Queues of changes in front of the database pool, so that one locked agent cannot take all connections of the pool."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from services.errors import Busy
from services.settings import Settings

# Changes of one agent that wait for a turn. More would wait longer than their callers do.
WAITING_MAX = 200
# Connections of the pool that changes never use, if the pool is large enough: reads continue.
FREE_FOR_READS = 2


class TooManyChanges(Busy):
    """Too many changes of this agent wait already: try again."""


@dataclass(slots=True)
class _Queue:
    """The changes of one agent: `size` of them have a turn or wait for one."""

    turns: asyncio.Semaphore
    size: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """How long a change has waited for its turn, and what is left of the time that a request waits for the database."""

    waited_seconds: float
    seconds_left: float


class ChangeQueues:
    """At most some changes of one agent use a connection at a time, in the order in which they arrived.

    Registrations name their agent and other changes have its id, so an agent can have two queues.
    """

    def __init__(self, settings: Settings) -> None:
        self._turns_per_agent = settings.changes_per_agent
        self._wait_seconds = settings.database_timeout.total_seconds()
        self._turns = asyncio.Semaphore(max(1, settings.database_pool_size - FREE_FOR_READS))
        self._queues: dict[UUID | str, _Queue] = {}

    @asynccontextmanager
    async def turn(self, agent: UUID | str) -> AsyncGenerator[Turn, None]:
        """Wait for a turn to change this agent, and keep it until exit.

        Raises `TooManyChanges` if the queue is full, and `Busy` after the longest wait for the database.
        """
        queue = self._queues.setdefault(agent, _Queue(asyncio.Semaphore(self._turns_per_agent)))
        if queue.size >= self._turns_per_agent + WAITING_MAX:
            raise TooManyChanges
        queue.size += 1
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with AsyncExitStack() as held:
                try:
                    async with asyncio.timeout_at(began + self._wait_seconds):
                        for turns in (queue.turns, self._turns):
                            await held.enter_async_context(turns)
                except TimeoutError as exc:
                    raise Busy from exc
                waited = loop.time() - began
                yield Turn(waited, max(self._wait_seconds - waited, 0.0))
        finally:
            queue.size -= 1
            if not queue.size:
                del self._queues[agent]
