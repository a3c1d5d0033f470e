"""How far webhooks have got: handing out events to the positions of their agents, and cursors.

A webhook's cursor moves over all events in their order, below the snapshot's xmin, so a slow transaction's events come
after it (`services.events.log`). An agent whose events it passes gets a position, which waits for the receiver; the
cursor does not. So an agent that is stuck delays no other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from services.errors import InvalidRequest
from services.events.log import EventsRemoved, Position, origin, read_events, transaction_of
from services.storage.models import Webhook
from services.webhooks.filters import WANTED

Database = AsyncSession | AsyncConnection

# Of one statement. Webhooks that are far behind take turns.
PAGE_EVENTS = 200
PAGE_WEBHOOKS = 50
# Of one webhook, those that are due first. More agents than this wait only if a receiver cannot keep up.
MOST_COUNTED = 1000
# Longer than a transaction takes from its id to its events.
OVERLAP = timedelta(minutes=5)

NOW = text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xid, 0 AS id")

_BEHIND = """w.status = 'active' AND EXISTS (
        SELECT FROM outbox AS o WHERE (o.xid, o.id) > (w.cursor_xid, w.cursor_id)
            AND o.xid < pg_snapshot_xmin(pg_current_snapshot()))"""
_ALL_BEHIND = text(f"SELECT w.id FROM webhooks AS w WHERE {_BEHIND}")  # noqa: S608 - built from constants only

# A position that exists keeps what waits. It goes back only for a replay; then a delivery under way does not count.
_HAND_OUT = text(f"""
WITH behind AS MATERIALIZED (
    SELECT w.id, w.agent_id, w.event_types, w.cursor_xid, w.cursor_id FROM webhooks AS w
    WHERE {_BEHIND} AND (CAST(:only AS uuid) IS NULL OR w.id = CAST(:only AS uuid))
    ORDER BY w.cursor_xid, w.cursor_id LIMIT :webhooks
    FOR NO KEY UPDATE SKIP LOCKED
), page AS MATERIALIZED (
    SELECT w.id AS webhook_id, o.* FROM behind AS w CROSS JOIN LATERAL (
        SELECT o.xid, o.id, o.agent_id, o.sequence, {WANTED} AS wanted FROM outbox AS o
        WHERE (o.xid, o.id) > (w.cursor_xid, w.cursor_id) AND o.xid < pg_snapshot_xmin(pg_current_snapshot())
        ORDER BY o.xid, o.id LIMIT :events
    ) AS o
), moved AS (
    UPDATE webhooks AS w SET cursor_xid = last.xid, cursor_id = last.id FROM (
        SELECT DISTINCT ON (webhook_id) webhook_id, xid, id FROM page ORDER BY webhook_id, xid DESC, id DESC
    ) AS last WHERE w.id = last.webhook_id
), placed AS (
    INSERT INTO webhook_positions AS p (webhook_id, agent_id, sequence, last_sequence)
    SELECT webhook_id, agent_id, min(sequence) - 1, max(sequence) FROM page WHERE wanted
    GROUP BY webhook_id, agent_id ORDER BY webhook_id, agent_id
    ON CONFLICT (webhook_id, agent_id) DO UPDATE SET
        sequence = least(p.sequence, excluded.sequence),
        last_sequence = greatest(p.last_sequence, excluded.last_sequence),
        claim = CASE WHEN excluded.sequence < p.sequence THEN NULL ELSE p.claim END,
        due_at = CASE WHEN excluded.sequence < p.sequence THEN excluded.due_at ELSE p.due_at END
)
SELECT (SELECT count(*) FROM behind) = :webhooks
        OR EXISTS (SELECT FROM page GROUP BY webhook_id HAVING count(*) = :events) AS has_more,
    EXISTS (SELECT FROM webhooks AS w WHERE w.status = 'active') AS has_webhooks
""")  # noqa: S608 - built from constants only

# The index of retries has other rows than that of first attempts.
_DUE = f"""
    SELECT p.agent_id, p.sequence, p.last_sequence FROM webhook_positions AS p
    WHERE p.webhook_id = w.id AND p.attempts {{which}} 0 ORDER BY p.due_at LIMIT {MOST_COUNTED}
"""  # noqa: S608 - built from constants only

# What waits for the webhook `w`: of how many agents, and since when the oldest event.
_WAITING = f"""
    SELECT count(*) AS agents, min(next.created_at) AS since FROM (
        ({_DUE.format(which=">")}) UNION ALL ({_DUE.format(which="<=")}) LIMIT {MOST_COUNTED}
    ) AS p LEFT JOIN LATERAL (
        SELECT o.created_at FROM outbox AS o
        WHERE o.agent_id = p.agent_id AND o.sequence > p.sequence AND o.sequence <= p.last_sequence
        ORDER BY o.sequence LIMIT 1
    ) AS next ON true
"""  # noqa: S608 - built from constants only

_LAG = text(f"""
SELECT w.id, waiting.agents, waiting.since,
    EXISTS (SELECT FROM agents AS a WHERE a.id = w.agent_id AND a.deleted_at IS NOT NULL) AS ended
FROM webhooks AS w CROSS JOIN LATERAL ({_WAITING}) AS waiting WHERE w.id = ANY(CAST(:ids AS uuid[]))
""")  # noqa: S608 - built from constants only

_STATES = text(f"""
SELECT w.id, w.agent_name, w.status, w.status_reason, w.missed, w.failing_since,
    clock_timestamp()
        - CASE WHEN w.status = 'active' THEN (SELECT since FROM ({_WAITING}) AS waiting) END AS waiting_for,
    clock_timestamp() - (
    SELECT o.created_at FROM outbox AS o WHERE w.status = 'active' AND (o.xid, o.id) > (w.cursor_xid, w.cursor_id)
        AND o.xid < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY o.xid, o.id LIMIT 1
) AS unread_for
FROM webhooks AS w ORDER BY w.created_at, w.id
""")  # noqa: S608 - built from constants only

# Time has no index. From the newest event back, this reads no more than what is sent again, and a margin: among events
# of transactions that overlap, the order differs from that of time.
_AT = text("""
WITH before AS MATERIALIZED (
    SELECT xid, id FROM outbox WHERE created_at < CAST(:since AS timestamptz) - CAST(:margin AS interval)
    ORDER BY xid DESC, id DESC LIMIT 1
)
SELECT o.xid::text::bigint AS xid, o.id FROM outbox AS o
WHERE (o.xid, o.id) > (coalesce((SELECT xid FROM before), '0'), coalesce((SELECT id FROM before), 0))
    AND o.created_at >= :since
ORDER BY o.xid, o.id LIMIT 1
""")

_CUT = text("""
WITH waiting AS MATERIALIZED (
    SELECT p.agent_id, last.sequence FROM webhook_positions AS p LEFT JOIN LATERAL (
        SELECT o.sequence FROM outbox AS o
        WHERE o.agent_id = p.agent_id AND o.sequence > p.sequence AND o.sequence <= p.last_sequence
            AND (o.xid, o.id) <= (CAST(CAST(:xid AS text) AS xid8), CAST(:id AS bigint))
        ORDER BY o.sequence DESC LIMIT 1
    ) AS last ON true
    WHERE p.webhook_id = :webhook_id
), removed AS (
    DELETE FROM webhook_positions AS p USING waiting
    WHERE p.webhook_id = :webhook_id AND p.agent_id = waiting.agent_id AND waiting.sequence IS NULL
)
UPDATE webhook_positions AS p SET last_sequence = waiting.sequence FROM waiting
WHERE p.webhook_id = :webhook_id AND p.agent_id = waiting.agent_id AND waiting.sequence < p.last_sequence
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookState:
    """A webhook for operators: for how long the oldest event waits that it has not accepted, or that no worker read.

    Both by the database's clock.
    """

    id: UUID
    agent_name: str | None
    status: str
    status_reason: str | None
    missed: int
    failing_since: datetime | None
    waiting_for: timedelta | None
    unread_for: timedelta | None


@dataclass(frozen=True, slots=True)
class Lag:
    """Of how many agents events wait, since when the oldest of them, and whether the webhook's agent is deleted.

    It looks at `MOST_COUNTED` agents.
    """

    waiting_agents: int = 0
    waiting_since: datetime | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class HandedOut:
    """Whether there is an active webhook, and whether there may be more events to hand out."""

    has_webhooks: bool
    has_more: bool


async def webhooks_behind(connection: AsyncConnection) -> Sequence[UUID]:
    """The active webhooks with events to hand out."""
    return (await connection.scalars(_ALL_BEHIND)).all()


async def hand_out(connection: AsyncConnection, only: UUID | None = None) -> HandedOut:
    """Move the cursors of active webhooks over some events, and place the agents of those that they want.

    Of `only` this webhook, if one is named. One statement, so in autocommit mode others see all of its effects at once.
    Waits for the lock of a position.
    """
    parameters = {"webhooks": PAGE_WEBHOOKS, "events": PAGE_EVENTS, "only": only}
    row = (await connection.execute(_HAND_OUT, parameters)).one()
    return HandedOut(bool(row.has_webhooks), bool(row.has_more))


async def lag_of(database: Database, webhook_ids: Sequence[UUID]) -> dict[UUID, Lag]:
    """By webhook: what waits for it."""
    found = await database.execute(_LAG, {"ids": list(webhook_ids)}) if webhook_ids else ()
    return {row.id: Lag(row.agents, row.since, row.ended) for row in found}


async def webhook_states(database: Database) -> list[WebhookState]:
    """All webhooks, oldest first."""
    return [WebhookState(**row) for row in (await database.execute(_STATES)).mappings().all()]


async def cursor_at(session: AsyncSession, since: datetime) -> Position | None:
    """The position before the first stored event of that time or later; None if there is none yet."""
    row = (await session.execute(_AT, {"since": since, "margin": OVERLAP})).one_or_none()
    return None if row is None else (row.xid, row.id - 1)


async def go_back(session: AsyncSession, webhook: Webhook, start: Position) -> None:
    """Move the cursor back to `start`. Positions keep what waits before it; the cursor hands out the rest again.

    Else an agent's events would be handed out behind those that wait. The positions must be locked.
    """
    webhook.cursor_xid, webhook.cursor_id = start
    await session.flush()
    await session.execute(_CUT, {"webhook_id": webhook.id, "xid": str(start[0]), "id": start[1]})


async def raw_position(session: AsyncSession, position: Position) -> Position:
    """The position as the outbox stores it, without its epoch. Raises `EventsRemoved` and `InvalidRequest`."""
    log = await read_events(session, None, origin(None), limit=0)
    if position > log.now:
        message = "The cursor is after the newest event: it comes from another installation or from before a restore."
        raise InvalidRequest(message, field="cursor")
    if position < log.removed:
        raise EventsRemoved
    return transaction_of(position), position[1]
