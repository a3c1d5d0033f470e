"""Questions to the ledger: where a rollback goes, and what served when."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.models import Promotion

# From the newest row to older ones; a rollback row stands for the row that it restored.
_ROLLBACK_TARGET = text("""
WITH RECURSIVE walk(generation) AS (
    SELECT coalesce(p.restored, p.generation)
    FROM promotions AS p
    WHERE p.agent_id = :agent_id AND p.generation = (SELECT generation FROM agents WHERE id = :agent_id)
    UNION ALL
    SELECT coalesce(p.restored, p.generation)
    FROM walk JOIN promotions AS p ON p.agent_id = :agent_id AND p.generation = walk.generation - 1
)
SELECT p.to_deployment_id AS deployment_id, p.generation AS restored
FROM walk
JOIN agents AS a ON a.id = :agent_id
JOIN promotions AS p ON p.agent_id = a.id AND p.generation = walk.generation
LEFT JOIN deployments AS d ON d.id = p.to_deployment_id
WHERE CASE WHEN p.to_deployment_id IS NULL
    THEN p.to_acp_url IS NOT NULL AND a.legacy_acp_url IS NOT NULL AND a.production_deployment_id IS NOT NULL
    ELSE d.status = 'Ready' AND d.expires_at IS NULL AND d.id IS DISTINCT FROM a.production_deployment_id
END
ORDER BY walk.generation DESC
LIMIT 1
""")

_LAST_SERVED = text("""
SELECT coalesce(restored, generation)
FROM promotions
WHERE agent_id = :agent_id
    AND to_deployment_id IS NOT DISTINCT FROM CAST(:deployment_id AS text) AND to_acp_url IS NOT NULL
ORDER BY generation DESC
LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class RollbackTarget:
    """What served before: a deployment, or the legacy address (None), and the generation at which it came."""

    deployment_id: str | None
    restored: int


async def rollback_target(session: AsyncSession, agent_id: UUID) -> RollbackTarget | None:
    """The newest thing that served before, does not serve now and still can; None if there is none."""
    row = (await session.execute(_ROLLBACK_TARGET, {"agent_id": agent_id})).one_or_none()
    return RollbackTarget(row.deployment_id, row.restored) if row else None


async def last_served(session: AsyncSession, agent_id: UUID, deployment_id: str | None) -> int | None:
    """The generation at which this deployment (None: the legacy address) last came to serve, if it ever did."""
    parameters = {"agent_id": agent_id, "deployment_id": deployment_id}
    generation: int | None = await session.scalar(_LAST_SERVED, parameters)
    return generation


async def history(
    session: AsyncSession, agent_id: UUID, *, limit: int, offset: int = 0, at: datetime | None = None
) -> list[Promotion]:
    """The agent's ledger, newest first; with `at`, only the row that held at that moment."""
    rows = select(Promotion).where(Promotion.agent_id == agent_id).order_by(Promotion.generation.desc())
    rows = rows.limit(limit).offset(offset) if at is None else rows.where(Promotion.at <= at).limit(1)
    return list(await session.scalars(rows))
