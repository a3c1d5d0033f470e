"""The outbox: events are committed together with their change and published in order per agent."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from pydantic_core import from_json
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.events import CloudEvent, event_sequence, event_source

# An arbitrary number; all relays of a database must use the same one.
RELAY_LOCK = 0x506F6469756D
# The database session that holds the lock, if there is one.
RELAY_SESSION = f"""
SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
WHERE locktype = 'advisory' AND datname = current_database() AND granted
    AND (classid::bigint << 32) + objid::bigint = {RELAY_LOCK}
"""  # noqa: S608 - composed of constants
WAKE_CHANNEL = "podium_outbox"

# Within an agent, ids grow in commit order, because they are assigned under the agent's lock: a reader that sees one
# event of an agent sees all earlier ones. Across agents they do not, so rows are claimed by state and not by cursor.
_CLAIM = text("""
SELECT id, event_id, type, agent_id, agent_name, subject, sequence, generation, payload::text AS payload, traceparent,
    created_at
FROM outbox
WHERE published_at IS NULL AND agent_id <> ALL(CAST(:held_back AS uuid[]))
ORDER BY id
LIMIT :limit
""")

_MARK = text("UPDATE outbox SET published_at = clock_timestamp() WHERE id = ANY(CAST(:ids AS bigint[]))")


_TRY_LOCK = text("SELECT pg_try_advisory_lock(CAST(:key AS bigint))")
_PROVE_ALIVE = text("SELECT 1")


async def try_lock(connection: AsyncConnection) -> bool:
    """Whether this session got the relay lock. It holds the lock until the session ends."""
    return bool(await connection.scalar(_TRY_LOCK, {"key": RELAY_LOCK}))


async def prove_alive(connection: AsyncConnection) -> None:
    """Return if the session, and so its lock, is alive; raises the database's error otherwise."""
    await connection.execute(_PROVE_ALIVE)


async def claim(
    connection: AsyncConnection, limit: int, held_back: Iterable[UUID] = ()
) -> Sequence[Row[*tuple[Any, ...]]]:
    """Up to `limit` unpublished events, in sequence order and without gaps per agent; skips agents in `held_back`."""
    return (await connection.execute(_CLAIM, {"limit": limit, "held_back": list(held_back)})).all()


def envelope(row: Row[*tuple[Any, ...]]) -> CloudEvent:
    """The event as consumers receive it; the same row always gives the same envelope."""
    return CloudEvent(
        id=row.event_id,
        source=event_source(str(row.agent_id)),
        type=row.type,
        subject=row.subject,
        time=row.created_at,
        sequence=event_sequence(row.sequence),
        generation=row.generation,
        agentname=row.agent_name,
        traceparent=row.traceparent,
        data=from_json(row.payload),
    )


async def mark_published(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Mark events as published, after the broker has confirmed them."""
    await connection.execute(_MARK, {"ids": list(ids)})
