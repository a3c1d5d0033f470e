"""The newest events of one agent, or about one of its deployments."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.events.log import EventRow

# Among how many events of the agent those of one subject are looked for: there is no index by subject.
FAR = 500

_RECENT = text("""
SELECT type, subject, sequence, generation, payload::text AS payload, created_at FROM (
    SELECT * FROM outbox WHERE agent_id = :agent_id ORDER BY sequence DESC LIMIT :far
) AS newest
WHERE CAST(:subject AS text) IS NULL OR subject = CAST(:subject AS text)
ORDER BY sequence DESC LIMIT :limit
""")


async def recent_events(
    session: AsyncSession, agent_id: UUID, *, subject: str | None = None, limit: int = 20
) -> Sequence[EventRow]:
    """Up to `limit` stored events, newest first.

    With `subject`, those of the agent's last 500 that are about this deployment.
    """
    parameters = {"agent_id": agent_id, "subject": subject, "far": FAR, "limit": limit}
    return (await session.execute(_RECENT, parameters)).all()
