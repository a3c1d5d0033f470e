"""The event log: reads events from a cursor without loss, and removes old ones.

The events of one agent are ordered by sequence, without gaps. All events are ordered by (xid, id) and read only below
the snapshot's xmin: transactions in flight all have a higher xid than any row read, so a slow transaction's rows come
later in the order and are never skipped. Ordering by a serial id alone would skip them.

The xid of a position counts on from epoch to epoch (`services.events.epochs`): its upper bits are the epoch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Text, literal_column, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from services.errors import AgentNotFound, PodiumError

# (sequence,) in the events of one agent, (xid, id) in all events. Later events have greater positions.
Position = tuple[int, ...]
EventRow = Row[*tuple[Any, ...]]
Database = AsyncSession | AsyncConnection

# The largest bigint of PostgreSQL.
_LARGEST = 2**63 - 1
# Room for the transaction ids of one cluster: at a million per second they last for nine years.
_XIDS_PER_EPOCH = 2**48
_CURSOR = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")

_EVENT = """event_id, type, agent_id, agent_name, subject, sequence, generation, payload::text AS payload, traceparent,
        created_at, xid::text::bigint AS xid, id"""

_NOW = f"""
SELECT coalesce(max(epoch), 0) * {_XIDS_PER_EPOCH} + pg_snapshot_xmin(pg_current_snapshot())::text::bigint
FROM event_epochs
"""  # noqa: S608 - built from constants only

_ALL = f"""
SELECT now.base + now.xid AS now_xid, now.base + coalesce(removed.xid, 0) AS removed_xid,
    coalesce(removed.id, 0) AS removed_id, now.base + e.xid AS position_xid, e.*
FROM (
    SELECT coalesce(max(epoch), 0) * {_XIDS_PER_EPOCH} AS base,
        pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xid
    FROM event_epochs
) AS now
LEFT JOIN (
    SELECT xid::text::bigint AS xid, id FROM outbox_low_water ORDER BY outbox_low_water.xid DESC, id DESC LIMIT 1
) AS removed ON true
LEFT JOIN LATERAL (
    SELECT {_EVENT} FROM outbox
    WHERE (outbox.xid, id)
            > (CAST(CAST(greatest(CAST(:xid AS bigint) - now.base, 0) AS text) AS xid8), CAST(:id AS bigint))
        AND outbox.xid < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY outbox.xid, id LIMIT :limit
) AS e ON true
ORDER BY e.xid, e.id
"""  # noqa: S608 - built from constants only

_OF_AGENT = f"""
SELECT agents.event_seq AS now_sequence, coalesce(removed.sequence, 0) AS removed_sequence, e.*
FROM agents
LEFT JOIN outbox_low_water AS removed ON removed.agent_id = agents.id
LEFT JOIN LATERAL (
    SELECT {_EVENT} FROM outbox WHERE outbox.agent_id = agents.id AND sequence > :sequence
    ORDER BY sequence LIMIT :limit
) AS e ON true
WHERE agents.id = :agent
ORDER BY e.sequence
"""  # noqa: S608 - built from constants only

_OF_AGENTS = f"""
SELECT e.* FROM unnest(CAST(:agents AS uuid[]), CAST(:sequences AS bigint[])) AS seen(agent_id, sequence)
CROSS JOIN LATERAL (
    SELECT {_EVENT} FROM outbox WHERE outbox.agent_id = seen.agent_id AND outbox.sequence > seen.sequence
    ORDER BY outbox.sequence LIMIT :limit
) AS e
ORDER BY e.id LIMIT :limit
"""  # noqa: S608 - built from constants only

# Checks the age of the rows in the order of their ids: a search by age would need a scan of all rows or one more index.
# A row that was published long after its creation stays, and the rows behind it are checked in the next step.
_REMOVE = text("""
WITH oldest AS (
    SELECT id, published_at, created_at FROM outbox WHERE published_at IS NOT NULL AND id > :after
    ORDER BY id LIMIT :limit
), removed AS (
    DELETE FROM outbox WHERE id = ANY(ARRAY(SELECT id FROM oldest WHERE published_at < :before))
    RETURNING outbox.agent_id, outbox.sequence, outbox.xid, outbox.id, outbox.type
), marked AS (
    INSERT INTO outbox_low_water AS mark (agent_id, sequence, xid, id)
    SELECT DISTINCT ON (agent_id) agent_id, sequence, xid, id FROM removed ORDER BY agent_id, sequence DESC
    ON CONFLICT (agent_id) DO UPDATE SET sequence = excluded.sequence, xid = excluded.xid, id = excluded.id
    WHERE mark.sequence < excluded.sequence
)
SELECT (SELECT count(*) FROM removed) AS rows, (SELECT jsonb_agg(removed)::text FROM removed) AS events, (
    SELECT last.id FROM (SELECT id, created_at FROM oldest ORDER BY id DESC LIMIT 1) AS last
    WHERE last.created_at < :before AND (SELECT count(*) FROM oldest) = :limit
) AS reached
""")

# JIT takes 200 ms to compile the query for 400 agents, which then runs for 2 ms.
_DISABLE_JIT = text("SET jit = off")

# The current cursor of all events, as a column: every change that the statement does not see has its events after it.
CURSOR = literal_column(f"(({_NOW})::text || '.0')", Text)

_READ_NOW, _READ_ALL, _READ_OF_AGENT, _READ_OF_AGENTS = select(CURSOR), text(_ALL), text(_OF_AGENT), text(_OF_AGENTS)


class EventsRemoved(PodiumError):
    """Events after this cursor were removed. Read the current state again, then continue from its cursor."""

    status = 410
    reason = "events-removed"


@dataclass(frozen=True, slots=True)
class Events:
    """Events after a position, in order, and the reader's position after them."""

    rows: Sequence[EventRow]
    reached: Position
    now: Position
    removed: Position


def parse_cursor(cursor: str, agent_id: UUID | None) -> Position:
    """Parse a cursor: a sequence (with or without leading zeros), or `xid.id`. Raises `ValueError`."""
    numbers = tuple(map(int, cursor.split("."))) if _CURSOR.fullmatch(cursor) else ()
    if len(numbers) != len(origin(agent_id)) or max(numbers) > _LARGEST:
        raise ValueError(cursor)
    return numbers


def origin(agent_id: UUID | None) -> Position:
    """The position before the first event of an agent, or of all events."""
    return (0, 0) if agent_id is None else (0,)


def cursor_of(position: Position) -> str:
    """The cursor of a position, as clients send it."""
    return ".".join(map(str, position))


def position_of(row: EventRow, agent_id: UUID | None) -> Position:
    """The position of an event: within its agent, or among all events."""
    return (row.position_xid, row.id) if agent_id is None else (row.sequence,)


def transaction_of(position: Position) -> int:
    """The transaction id of a position among all events, as the cluster of its epoch counts them."""
    return position[0] % _XIDS_PER_EPOCH


async def event_cursor(session: AsyncSession) -> str:
    """The current cursor of all events: every change that commits later has its events after it."""
    return str(await session.scalar(_READ_NOW))


async def read_events(database: Database, agent_id: UUID | None, after: Position, limit: int) -> Events:
    """Up to `limit` events after a position, of one agent or of all agents. Raises `AgentNotFound`.

    Includes committed events that the broker does not have yet; a read of all events ends at the snapshot's xmin. If
    fewer than `limit` are left, `reached` is the end of the log. The caller must compare `removed` with `after`.
    """
    now: Position
    removed: Position
    if agent_id is None:
        found = await database.execute(_READ_ALL, {"xid": after[0], "id": after[1], "limit": limit})
        rows = found.all()
        now, removed = (rows[0].now_xid, 0), (rows[0].removed_xid, rows[0].removed_id)
    else:
        found = await database.execute(_READ_OF_AGENT, {"agent": agent_id, "sequence": after[0], "limit": limit})
        rows = found.all()
        if not rows:
            raise AgentNotFound
        now, removed = (rows[0].now_sequence,), (rows[0].removed_sequence,)
    events = [row for row in rows if row.event_id is not None]
    reached = position_of(events[-1], agent_id) if events and len(events) == limit else max(now, after)
    return Events(events, reached, now, removed)


async def make_reader(connection: AsyncConnection) -> None:
    """Prepare a session for frequent `read_events_of_agents`: switches JIT compilation off."""
    await connection.execute(_DISABLE_JIT)


async def read_events_of_agents(database: Database, seen: Mapping[UUID, int], limit: int) -> Sequence[EventRow]:
    """Up to `limit` events of these agents after the sequences in `seen`, in order and without gaps per agent."""
    parameters = {"agents": list(seen), "sequences": list(seen.values()), "limit": limit}
    return (await database.execute(_READ_OF_AGENTS, parameters)).all()


@dataclass(frozen=True, slots=True)
class Removed:
    """How many events were removed, and the id after which to go on; None if no older events are left.

    `events` is a JSON array of what was removed: agent_id, sequence, xid, id and type of each; None if nothing was.
    """

    rows: int
    reached: int | None
    events: str | None = None


async def remove_published(session: AsyncSession, before: datetime, limit: int, after: int = 0) -> Removed:
    """Check the next `limit` published events after the id `after`, and remove those published before `before`.

    Events that the broker has not confirmed stay, whatever their age. After the commit, reads from a position before
    the removed events show the gap in `Events.removed`.
    """
    row = (await session.execute(_REMOVE, {"before": before, "limit": limit, "after": after})).one()
    return Removed(row.rows, row.reached, row.events)
