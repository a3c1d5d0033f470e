"""The targets of a rollback, read from the ledger."""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.fields import joined

# Walks from the newest row to older ones; a rollback row counts as the row that it restored.
_ROLLBACK_TARGETS = text("""
WITH RECURSIVE walk(generation) AS (
    SELECT coalesce(p.restored, p.generation)
    FROM promotions AS p
    WHERE p.agent_id = :agent_id AND p.generation = (SELECT generation FROM agents WHERE id = :agent_id)
    UNION ALL
    SELECT coalesce(p.restored, p.generation)
    FROM walk JOIN promotions AS p ON p.agent_id = :agent_id AND p.generation = walk.generation - 1
)
SELECT p.to_deployment_id AS deployment_id, max(p.generation) AS restored,
    coalesce(d.acp_url, a.legacy_acp_url) AS acp_url, coalesce(d.health_path, a.legacy_health_path) AS health_path,
    coalesce(d.registered_at, a.registered_at) AS registered_at
FROM walk
JOIN agents AS a ON a.id = :agent_id
JOIN promotions AS p ON p.agent_id = a.id AND p.generation = walk.generation
LEFT JOIN deployments AS d ON d.id = p.to_deployment_id
WHERE CASE WHEN p.to_deployment_id IS NULL
    THEN p.to_acp_url IS NOT NULL AND a.legacy_acp_url IS NOT NULL AND a.production_deployment_id IS NOT NULL
    ELSE d.status = 'Ready' AND d.expires_at IS NULL AND d.id IS DISTINCT FROM a.production_deployment_id
END
GROUP BY p.to_deployment_id, d.id, a.id
ORDER BY restored DESC
LIMIT :limit
""")

_LAST_SERVED = text("""
SELECT coalesce(restored, generation)
FROM promotions
WHERE agent_id = :agent_id
    AND CASE WHEN CAST(:deployment_id AS text) IS NULL
        THEN to_deployment_id IS NULL ELSE to_deployment_id = CAST(:deployment_id AS text) END
    AND to_acp_url IS NOT NULL
ORDER BY generation DESC
LIMIT 1
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an agent can go back to: a deployment, or the legacy address (`deployment_id` is None)."""

    deployment_id: str | None
    acp_url: str
    health_path: str
    registered_at: datetime | None
    restored: int | None  # the generation that last put it into service; None if it never served

    @property
    def url(self) -> str:
        """The URL of its health page."""
        return joined(self.acp_url, self.health_path)

    def matches(self, other: "Target") -> bool:
        """Whether a probe of `other` holds for this target: same deployment, address and registration."""
        return replace(self, restored=None) == replace(other, restored=None)


async def rollback_targets(session: AsyncSession, agent_id: UUID, *, limit: int) -> list[Target]:
    """What served before, does not serve now and can serve again; the newest, where a rollback goes, is first."""
    rows = await session.execute(_ROLLBACK_TARGETS, {"agent_id": agent_id, "limit": limit})
    return [Target(**row._mapping) for row in rows]  # noqa: SLF001 - public API of SQLAlchemy


async def last_served(session: AsyncSession, agent_id: UUID, deployment_id: str | None) -> int | None:
    """The generation that last put this deployment (None: the legacy address) into service; None if none did."""
    parameters = {"agent_id": agent_id, "deployment_id": deployment_id}
    generation: int | None = await session.scalar(_LAST_SERVED, parameters)
    return generation
