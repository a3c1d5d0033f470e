"""The targets of a rollback, read from the ledger."""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.fields import joined

# How many rows of the ledger are read for more targets than one: the agent is locked meanwhile.
FAR = 1000

# Walks from the newest row to older ones; a rollback row counts as the row that it restored. Ends once it has found all
# candidates or `limit` targets, or after `far` rows if it has found any target. The legacy address has the empty id.
_ROLLBACK_TARGETS = text("""
WITH RECURSIVE agent AS (
    SELECT id, generation, production_deployment_id, legacy_acp_url, legacy_health_path, registered_at,
        legacy_acp_url IS NOT NULL AND production_deployment_id IS NOT NULL AS has_legacy
    FROM agents WHERE id = :agent_id
), candidates AS (
    SELECT count(*) AS number FROM (
        SELECT FROM agent WHERE has_legacy
        UNION ALL
        SELECT FROM deployments AS d JOIN agent ON d.agent_id = agent.id
        WHERE d.status = 'Ready' AND d.expires_at IS NULL AND d.promoted_at IS NOT NULL
            AND d.id IS DISTINCT FROM agent.production_deployment_id
        LIMIT :limit
    ) AS candidate
), walk(generation, steps, target, found) AS (
    SELECT agent.generation + 1, 0, CAST(NULL AS text), CAST(ARRAY[] AS text[]) FROM agent
    UNION ALL
    SELECT p.generation, walk.steps + 1, target.id,
        CASE WHEN target.id IS NULL THEN walk.found ELSE walk.found || target.id END
    FROM walk
    JOIN agent ON true
    JOIN promotions AS newest ON newest.agent_id = agent.id AND newest.generation = walk.generation - 1
    JOIN promotions AS p ON p.agent_id = agent.id AND p.generation = coalesce(newest.restored, newest.generation)
    LEFT JOIN deployments AS d
        ON d.id = p.to_deployment_id AND d.id <> ALL(walk.found)
            AND d.status = 'Ready' AND d.expires_at IS NULL AND d.id IS DISTINCT FROM agent.production_deployment_id
    CROSS JOIN LATERAL (
        SELECT CASE WHEN p.to_deployment_id IS NOT NULL THEN d.id
            WHEN p.to_acp_url IS NOT NULL AND agent.has_legacy AND '' <> ALL(walk.found) THEN '' END AS id
    ) AS target
    WHERE cardinality(walk.found) < (SELECT number FROM candidates)
        AND (walk.steps < :far OR cardinality(walk.found) = 0)
)
SELECT d.id AS deployment_id, walk.generation AS restored,
    coalesce(d.acp_url, agent.legacy_acp_url) AS acp_url,
    coalesce(d.health_path, agent.legacy_health_path) AS health_path,
    coalesce(d.registered_at, agent.registered_at) AS registered_at
FROM walk
JOIN agent ON true
LEFT JOIN deployments AS d ON d.id = walk.target
WHERE walk.target IS NOT NULL
ORDER BY walk.generation DESC
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
    """What served before, does not serve now and can serve again; the newest, where a rollback goes, is first.

    At most `limit` targets. Only the first one is found however old it is; the others among the last 1000 generations.
    """
    rows = await session.execute(_ROLLBACK_TARGETS, {"agent_id": agent_id, "limit": limit, "far": FAR})
    return [Target(**row._mapping) for row in rows]  # noqa: SLF001 - public API of SQLAlchemy


async def last_served(session: AsyncSession, agent_id: UUID, deployment_id: str | None) -> int | None:
    """The generation that last put this deployment (None: the legacy address) into service; None if none did."""
    parameters = {"agent_id": agent_id, "deployment_id": deployment_id}
    generation: int | None = await session.scalar(_LAST_SERVED, parameters)
    return generation
