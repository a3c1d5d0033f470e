"""Counts calls per agent, version and minute in the memory of one API process, and stores them every ten seconds.

A call costs a look-up in a dictionary and some additions, and never waits for the database. A process that dies loses
what it has counted since its last write. While the database is away, the process goes on counting, within its bounds.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from time import monotonic, time
from uuid import UUID, uuid4

import structlog
from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.cancellation import background_task
from services.storage.database import Sessions, in_transaction

STORE_EVERY = timedelta(seconds=10)
# A stop waits no longer than this for the last write.
LAST_STORE_SECONDS = 2.0
# Of how many agents, versions and minutes one process keeps apart, some 20 MB; further ones are counted together.
MOST_BUCKETS = 50_000
# Of one statement, so that it fits into PODIUM_DATABASE_TIMEOUT also after an outage.
MOST_ROWS = 5_000
# The agent of the calls that are counted together.
OTHERS = UUID(int=0)
SECONDS_PER_MINUTE = 60
# Counts of minutes that are over stay in memory for so long, in case the database's clock is set back.
KEPT_MINUTES = 2

# Agent, deployment ("" for the legacy address), and minute since 1970 by the database's clock.
Key = tuple[UUID, str, int]

# Each row is the whole count of the process, so a write of which nobody knows whether it was committed can be repeated.
_STORE = text("""
WITH stored AS (
    INSERT INTO call_counts AS c (agent_id, minute, deployment_id, process_id, calls, agent_failures, gateway_failures,
        answered, answer_seconds, longest_seconds)
    SELECT r.agent_id, to_timestamp(r.minute * 60), r.deployment_id, :process_id, r.calls, r.agent_failures,
        r.gateway_failures, r.answered, r.answer_seconds, r.longest_seconds
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(agent_id uuid, minute bigint, deployment_id text, calls int,
        agent_failures int, gateway_failures int, answered int, answer_seconds float8, longest_seconds float8)
    ON CONFLICT ON CONSTRAINT call_counts_pkey DO UPDATE SET calls = excluded.calls,
        agent_failures = excluded.agent_failures, gateway_failures = excluded.gateway_failures,
        answered = excluded.answered, answer_seconds = excluded.answer_seconds,
        longest_seconds = excluded.longest_seconds
    WHERE c.calls < excluded.calls
)
SELECT extract(epoch FROM clock_timestamp())::float8
""")

log = structlog.get_logger(__name__)


class Bucket:
    """The calls of one agent, version and minute."""

    __slots__ = ("agent_failures", "answer_seconds", "answered", "calls", "gateway_failures", "longest_seconds")

    def __init__(self) -> None:
        self.calls = self.agent_failures = self.gateway_failures = self.answered = 0
        self.answer_seconds = self.longest_seconds = 0.0


class CallCounts:
    """The counts of one process."""

    def __init__(self, retention: timedelta) -> None:
        self.process_id = uuid4()
        self._kept_minutes = int(retention.total_seconds() // SECONDS_PER_MINUTE)
        self._buckets: dict[Key, Bucket] = {}
        self._changed: set[Key] = set()
        # By its own clock, until the first write has read the database's.
        self._offset = time() - monotonic()

    def record(
        self,
        agent_id: UUID,
        deployment_id: str | None,
        *,
        agent_failed: bool,
        gateway_failed: bool,
        answer_seconds: float | None,
    ) -> None:
        """Count a call that has ended; `answer_seconds` is the time to the first byte of its answer, if any."""
        key = (agent_id, deployment_id or "", self._minute())
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MOST_BUCKETS:
                key = (OTHERS, "", key[2])
            bucket = self._buckets.setdefault(key, Bucket())
        bucket.calls += 1
        bucket.agent_failures += agent_failed
        bucket.gateway_failures += gateway_failed
        if answer_seconds is not None:
            bucket.answered += 1
            bucket.answer_seconds += answer_seconds
            bucket.longest_seconds = max(bucket.longest_seconds, answer_seconds)
        self._changed.add(key)

    async def store(self, sessions: Sessions, *, seconds: float | None = None) -> None:
        """Store what has changed since the last write, in several transactions if it is much.

        What could not be stored is part of the next write. `seconds` limits the whole write, not only each transaction.
        """
        self._forget(self._minute() - self._kept_minutes)
        ends_at = None if seconds is None else monotonic() + seconds
        keys = sorted(self._changed)
        for first in range(0, len(keys), MOST_ROWS):
            left = None if ends_at is None else max(ends_at - monotonic(), 0.0)
            await self._store(sessions, keys[first : first + MOST_ROWS], left)
        if keys:
            self._forget(self._minute() - KEPT_MINUTES, unless_changed=True)

    async def _store(self, sessions: Sessions, keys: Sequence[Key], seconds: float | None) -> None:
        rows = to_json(self._rows(keys)).decode()
        # A call that ends during the write changes its count again.
        self._changed.difference_update(keys)
        try:
            now = await in_transaction(
                sessions, lambda session: _stored(session, self.process_id, rows), seconds=seconds
            )
        except BaseException:
            self._changed.update(keys)
            raise
        self._offset = now - monotonic()

    def _minute(self) -> int:
        return int((monotonic() + self._offset) // SECONDS_PER_MINUTE)

    def _rows(self, keys: Sequence[Key]) -> list[dict[str, object]]:
        return [
            {
                "agent_id": str(agent_id),
                "minute": minute,
                "deployment_id": deployment_id,
                **{name: getattr(self._buckets[agent_id, deployment_id, minute], name) for name in Bucket.__slots__},
            }
            for agent_id, deployment_id, minute in keys
        ]

    def _forget(self, before: int, *, unless_changed: bool = False) -> None:
        for key in [key for key in self._buckets if key[2] < before and not (unless_changed and key in self._changed)]:
            del self._buckets[key]
            self._changed.discard(key)


async def _stored(session: AsyncSession, process_id: UUID, rows: str) -> float:
    """Store these counts; returns the time by the database's clock."""
    return float((await session.execute(_STORE, {"process_id": process_id, "rows": rows})).scalar_one())


@asynccontextmanager
async def open_call_counts(sessions: Sessions, retention: timedelta) -> AsyncGenerator[CallCounts, None]:
    """Counts calls, and stores the counts until the end of the context and once more then."""
    counts = CallCounts(retention)
    fails = False

    async def store_repeatedly() -> None:
        nonlocal fails
        while True:
            await asyncio.sleep(STORE_EVERY.total_seconds())
            try:
                await counts.store(sessions)
            except Exception as error:  # noqa: BLE001 - the next write has what this one has not stored
                if not fails:
                    log.warning("Calls are counted, but not stored.", action="calls.away", cause=repr(error)[:200])
                fails = True
            else:
                if fails:
                    log.info("Counts of calls are stored again.", action="calls.back")
                fails = False

    async with background_task(store_repeatedly(), name="counts of calls"):
        yield counts
    try:
        await counts.store(sessions, seconds=LAST_STORE_SECONDS)
    except Exception as error:  # noqa: BLE001 - counts are no reason to fail a stop
        log.warning("The last calls were not stored.", action="calls.lost", cause=repr(error)[:200])


_REMOVE = text("""
WITH old AS (
    SELECT agent_id, minute, deployment_id, process_id FROM call_counts WHERE minute < :before
    ORDER BY minute LIMIT :limit FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM call_counts AS c USING old
    WHERE (c.agent_id, c.minute, c.deployment_id, c.process_id)
        = (old.agent_id, old.minute, old.deployment_id, old.process_id) RETURNING 1
)
SELECT count(*) FROM removed
""")


async def remove_old(session: AsyncSession, before: datetime, limit: int) -> int:
    """Delete at most `limit` counts of minutes before `before`; returns how many it deleted."""
    return int(await session.scalar(_REMOVE, {"before": before, "limit": limit}) or 0)
