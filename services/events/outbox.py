"""Events that wait for the broker: written with the change they tell of, read in an order that keeps every agent's."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from pydantic_core import from_json
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.events import CloudEvent, event_sequence, event_source

# Any number; what counts is that every relay of a database asks for the same one.
RELAY_LOCK = 0x506F6469756D
WAKE_CHANNEL = "podium_outbox"

# Ids grow in commit order within an agent, since they are drawn under the agent's lock: whoever sees one event of an
# agent sees all the earlier ones. Across agents they do not, which is why rows are claimed by state, not by cursor.
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
    """Whether this session is now the one that may publish; it is until the session ends."""
    return bool(await connection.scalar(_TRY_LOCK, {"key": RELAY_LOCK}))


async def prove_alive(connection: AsyncConnection) -> None:
    """Return if the session, and with it the lock, is still there; raises what the database says if not."""
    await connection.execute(_PROVE_ALIVE)


async def claim(
    connection: AsyncConnection, limit: int, held_back: Iterable[UUID] = ()
) -> Sequence[Row[*tuple[Any, ...]]]:
    """Up to `limit` unpublished events of other agents than these, each agent's in sequence order, without a gap."""
    return (await connection.execute(_CLAIM, {"limit": limit, "held_back": list(held_back)})).all()


def envelope(row: Row[*tuple[Any, ...]]) -> CloudEvent:
    """The event as consumers see it; the same each time it is built."""
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
    """Remember that the broker has confirmed these."""
    await connection.execute(_MARK, {"ids": list(ids)})
