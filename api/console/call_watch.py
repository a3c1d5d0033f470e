"""Notices which agents had calls, so that open pages read their counts again: one statement per process every 30 s.

None while no such page is open.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.calls.recent import MINUTES
from services.cancellation import background_task
from services.domain.identity import Identity
from services.storage.database import Sessions

EVERY = timedelta(seconds=30)

# Counts that may have changed since `seen`, and those that have left the last hour since.
_CHANGED = text("""
SELECT statement_timestamp() AS at, a.id, a.name FROM (
    SELECT DISTINCT agent_id FROM call_counts
    WHERE minute BETWEEN CAST(:seen AS timestamptz) - interval '2 minutes' AND statement_timestamp()
        OR minute BETWEEN CAST(:seen AS timestamptz) - make_interval(mins => :minutes + 1)
            AND statement_timestamp() - make_interval(mins => :minutes)
) AS changed JOIN agents AS a ON a.id = changed.agent_id
UNION ALL SELECT statement_timestamp(), NULL, NULL
""")


class CallWatch:
    """Which agents' counts have changed while pages of this process are open."""

    def __init__(self, reads: Sessions) -> None:
        self._reads = reads
        self._wanted = asyncio.Event()
        self._clients = 0
        self._seen: datetime | None = None
        # By agent: its name, and the version at which its counts changed last.
        self._changed: dict[UUID, tuple[str, int]] = {}
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
                self._changed, self._seen = {}, None

    def has_changed(self, since: int, agent_id: UUID | None, identity: Identity) -> bool:
        """Whether the counts of this agent, or of any that the identity sees, have changed since that version."""
        if agent_id is not None:
            return self._changed.get(agent_id, ("", 0))[1] > since
        return self.version > since and any(
            version > since and identity.sees(name) for name, version in self._changed.values()
        )

    async def run(self) -> None:
        """Watch until cancelled. What cannot be read has not changed."""
        while True:
            await self._wanted.wait()
            with suppress(SQLAlchemyError, OSError, TimeoutError):
                await self._look()
            await asyncio.sleep(EVERY.total_seconds())

    async def _look(self) -> None:
        async with self._reads() as session:
            if self._seen is None:
                self._seen = await session.scalar(text("SELECT statement_timestamp()"))
                return
            rows = (await session.execute(_CHANGED, {"seen": self._seen, "minutes": MINUTES})).all()
        self._seen = rows[0].at
        changed = {row.id: row.name for row in rows if row.id is not None}
        if changed:
            self.version += 1
            self._changed |= {agent_id: (name, self.version) for agent_id, name in changed.items()}


@asynccontextmanager
async def open_call_watch(reads: Sessions) -> AsyncGenerator[CallWatch, None]:
    """A watch, ended on exit."""
    watch = CallWatch(reads)
    async with background_task(watch.run(), name="console, calls"):
        yield watch
