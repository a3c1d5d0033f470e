"""Events that wait for the broker: written with the change they tell of, read in an order that keeps every agent's."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

# Any number; what counts is that every relay of a database asks for the same one.
RELAY_LOCK = 0x506F6469756D
WAKE_CHANNEL = "podium_outbox"

# Ids grow in commit order within an agent, since they are drawn under the agent's lock: whoever sees one event of an
# agent sees all the earlier ones. Across agents they do not, which is why rows are claimed by state, not by cursor.
_CLAIM = text("""
SELECT id, event_id, type, agent_id, agent_name, subject, sequence, generation, payload::text AS payload, traceparent,
    created_at
FROM outbox
WHERE published_at IS NULL
ORDER BY id
LIMIT :limit
""")

_MARK = text("UPDATE outbox SET published_at = clock_timestamp() WHERE id = ANY(CAST(:ids AS bigint[]))")


async def claim(connection: AsyncConnection, limit: int) -> Sequence[Row[*tuple[Any, ...]]]:
    """Up to `limit` unpublished events, each agent's in sequence order and without a gap."""
    return (await connection.execute(_CLAIM, {"limit": limit})).all()


async def mark_published(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Remember that the broker has confirmed these."""
    await connection.execute(_MARK, {"ids": list(ids)})
