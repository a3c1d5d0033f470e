"""Notices changes that have no event: parked messages, outcomes of registrations, and the state of the system.

One statement per process every two seconds, and none while no page that shows them is open.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.events.fanout import FanOut
from services.cancellation import background_task
from services.storage.database import Sessions

EVERY = timedelta(seconds=2)

_STATE = text("""
SELECT
    (SELECT max(received_at) FROM registrations) AS registrations,
    (SELECT max(received_at) FROM parked) AS parked_at, (SELECT count(*) FROM parked) AS parked,
    (SELECT count(*) FROM (SELECT FROM outbox WHERE published_at IS NULL LIMIT 1000) AS e) AS events,
    (SELECT count(*) FROM janitors WHERE panic_since IS NOT NULL) AS panics,
    (SELECT count(*) FROM janitors WHERE seen_at > statement_timestamp() - interval '15 s') AS janitors
""")


class Watch:
    """The state that open pages of this process wait for."""

    def __init__(self, reads: Sessions, events: FanOut) -> None:
        self._reads = reads
        self._events = events
        self._state: tuple[object, ...] | None = None
        self._wanted = asyncio.Event()
        self._clients = 0
        self.changed = asyncio.Event()
        self.version = 0

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Watch while inside."""
        self._clients += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._clients -= 1
            if not self._clients:
                self._wanted.clear()

    async def run(self) -> None:
        """Watch until cancelled. What cannot be read has not changed."""
        while True:
            await self._wanted.wait()
            try:
                async with self._reads() as session:
                    state = tuple((await session.execute(_STATE)).one())
            except (SQLAlchemyError, OSError, TimeoutError):
                state = self._state or ()
            if state != self._state or self._events.ended:
                self._state = state
                self.version += 1
                self.changed.set()
                self.changed = asyncio.Event()
            await asyncio.sleep(EVERY.total_seconds())


@asynccontextmanager
async def open_watch(reads: Sessions, events: FanOut) -> AsyncGenerator[Watch, None]:
    """A watch, ended on exit."""
    watch = Watch(reads, events)
    async with background_task(watch.run(), name="console"):
        yield watch
