"""Events that retention removed before a webhook had accepted them: they are counted, and retention never waits."""

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.webhooks.filters import WANTED

_COUNT = text(f"""
WITH missed AS (
    SELECT w.id AS webhook_id, count(*) AS events
    FROM jsonb_to_recordset(CAST(:removed AS jsonb))
        AS o(agent_id uuid, sequence bigint, xid text, id bigint, type text)
    JOIN webhooks AS w ON {WANTED}
    LEFT JOIN webhook_positions AS p ON p.webhook_id = w.id AND p.agent_id = o.agent_id
    WHERE (CAST(o.xid AS xid8), o.id) > (w.cursor_xid, w.cursor_id)
        OR (o.sequence > p.sequence AND o.sequence <= p.last_sequence)
    GROUP BY w.id ORDER BY w.id
)
UPDATE webhooks AS w SET missed = w.missed + missed.events FROM missed WHERE w.id = missed.webhook_id
RETURNING w.id, w.agent_name, missed.events
""")  # noqa: S608 - built from constants only

log = structlog.get_logger(__name__)


async def count_missed(session: AsyncSession, removed: str) -> None:
    """Count for each webhook which of these events it has not accepted; `removed` is `Removed.events`.

    Call it in the transaction that removes them; others see the counts once it is committed.
    """
    for row in (await session.execute(_COUNT, {"removed": removed})).all():
        log.warning(
            "Events were removed before a webhook had accepted them.",
            action="webhook.missed",
            webhook_id=str(row.id),
            agent=row.agent_name,
            events=row.events,
        )
