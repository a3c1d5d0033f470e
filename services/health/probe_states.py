"""What is stored of the probes of a deployment: their schedule, and how many in a row had the same result."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_STATES = text("""
SELECT p.instance_id, p.due_at, p.streak, p.failing_since, p.confirmed, p.last_call_at, j.name AS failed_by
FROM probes AS p LEFT JOIN janitors AS j ON j.id = p.failed_by
WHERE p.deployment_id = :deployment_id
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeState:
    """The probes of one pod. A negative `streak` counts failed ones in a row, a positive one answered ones."""

    due_at: datetime
    streak: int
    failing_since: datetime | None
    confirmed: bool
    last_call_at: datetime | None
    failed_by: str | None


async def probe_states(session: AsyncSession, deployment_id: str) -> dict[str, ProbeState]:
    """The probes of a deployment's pods, by instance id; that of its only pod is empty."""
    rows = await session.execute(_STATES, {"deployment_id": deployment_id})
    return {
        row.instance_id: ProbeState(
            due_at=row.due_at,
            streak=row.streak,
            failing_since=row.failing_since,
            confirmed=row.confirmed,
            last_call_at=row.last_call_at,
            failed_by=row.failed_by,
        )
        for row in rows
    }
