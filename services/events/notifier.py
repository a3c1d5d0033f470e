"""Waking the relay: a hint after a commit, never part of it; polling stays the truth."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.events.outbox import WAKE_CHANNEL

# A NOTIFY inside each transaction takes a lock that all commits share: it cost three quarters of their throughput.
INTERVAL_SECONDS = 0.005
# A hint that takes longer is worth nothing, and its connection is not its own.
LIMIT_SECONDS = 2.0

_NOTIFY = text(f"NOTIFY {WAKE_CHANNEL}")


class OutboxNotifier:
    """Tells the relay that events wait: at most once per 5 ms and process, on a connection of its own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._events_wait = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def notify(self) -> None:
        """Call after a commit that wrote events; returns at once."""
        self._events_wait.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="notifier")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await self._events_wait.wait()
            self._events_wait.clear()
            with suppress(Exception):  # a lost hint costs one polling interval, a lost notifier all that follow
                async with asyncio.timeout(LIMIT_SECONDS), self._engine.connect() as connection:
                    await connection.execute(_NOTIFY)
            await asyncio.sleep(INTERVAL_SECONDS)
