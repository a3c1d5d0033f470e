"""The targets of a rollback, read from the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.fields import joined
from services.domain.state import AgentSnapshot, AgentState, DeploymentState

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

# How many steps `WALK_SQL` takes at most: the read of all changes that are made together waits for it.
NEAR = 20

# The same walk for the agents whose ids are the parameter, without the lock: all its steps, down to the first target.
# What was passed over is among them, so that it can be compared: it would have been the target, had it been Ready.
WALK_SQL = f"""
WITH RECURSIVE walk(agent_id, serves, has_legacy, steps, generation, deployment_id, is_address, is_target) AS (
    SELECT id, production_deployment_id, legacy_acp_url IS NOT NULL AND production_deployment_id IS NOT NULL,
        0, generation + 1, NULL::text, false, false
    FROM agents WHERE id = ANY({{agent_ids}})
    UNION ALL
    SELECT walk.agent_id, walk.serves, walk.has_legacy, walk.steps + 1, p.generation, p.to_deployment_id,
        p.to_deployment_id IS NULL AND p.to_acp_url IS NOT NULL,
        CASE WHEN p.to_deployment_id IS NULL THEN p.to_acp_url IS NOT NULL AND walk.has_legacy
            ELSE coalesce(d.status = 'Ready' AND d.expires_at IS NULL AND d.id IS DISTINCT FROM walk.serves, false) END
    FROM walk
    JOIN promotions AS newest ON newest.agent_id = walk.agent_id AND newest.generation = walk.generation - 1
    JOIN promotions AS p ON p.agent_id = newest.agent_id AND p.generation = coalesce(newest.restored, newest.generation)
    LEFT JOIN deployments AS d ON d.id = p.to_deployment_id
    WHERE NOT walk.is_target AND walk.steps < {NEAR}
)
SELECT agent_id, deployment_id, generation, is_address FROM walk WHERE steps > 0
"""  # noqa: S608 - composed of constants

# The generation that last put a deployment, or the legacy address, into service.
LAST_SERVED_SQL = """
SELECT coalesce(restored, generation) FROM promotions
WHERE agent_id = {agent_id} AND to_deployment_id = {deployment_id}
ORDER BY generation DESC LIMIT 1
"""
LEGACY_LAST_SERVED_SQL = """
SELECT coalesce(restored, generation) FROM promotions
WHERE agent_id = {agent_id} AND to_deployment_id IS NULL AND to_acp_url IS NOT NULL
ORDER BY generation DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an agent can go back to: a deployment, or the legacy address (`deployment_id` is None)."""

    deployment_id: str | None
    acp_url: str
    health_path: str
    registered_at: datetime | None
    restored: int | None  # the generation that last put it into service; None if it never served

    @classmethod
    def of(cls, deployment: DeploymentState, restored: int | None) -> Self:
        """A deployment, which has announced itself."""
        return cls(
            deployment_id=deployment.id,
            acp_url=deployment.acp_url or "",
            health_path=deployment.health_path,
            registered_at=deployment.registered_at,
            restored=restored,
        )

    @classmethod
    def legacy(cls, agent: AgentState, restored: int | None) -> Self:
        """The agent's legacy address, which it must have."""
        return cls(
            deployment_id=None,
            acp_url=agent.legacy_acp_url or "",
            health_path=agent.legacy_health_path,
            registered_at=agent.registered_at,
            restored=restored,
        )

    @property
    def url(self) -> str:
        """The URL of its health page."""
        return joined(self.acp_url, self.health_path)

    def matches(self, other: "Target") -> bool:
        """Whether a probe of `other` holds for this target: same deployment, address and registration."""
        return replace(self, restored=None) == replace(other, restored=None)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the walk over the ledger: what this generation put into service; both None and False for nothing."""

    generation: int
    deployment_id: str | None
    is_address: bool


class Undecided(Exception):
    """What was read without the lock does not decide: the walk found no target, and not the end of the ledger."""


def target_of_walk(state: AgentSnapshot, steps: Sequence[Step]) -> Target | None:
    """What `rollback_targets` finds first, by the steps of `WALK_SQL` in their order; None if there is nothing.

    The state has all deployments of the steps. Raises `Undecided`.
    """
    for step in steps:
        if step.is_address and state.agent.legacy_acp_url is not None and state.production is not None:
            return Target.legacy(state.agent, step.generation)
        deployment = state.deployments.get(step.deployment_id) if step.deployment_id is not None else None
        if deployment is not None and _can_serve(state, deployment):
            return Target.of(deployment, step.generation)
    if (steps[-1].generation if steps else state.agent.generation + 1) > 1:
        raise Undecided
    return None


def _can_serve(state: AgentSnapshot, deployment: DeploymentState) -> bool:
    is_served = deployment.id == state.agent.production_deployment_id
    return deployment.status == "Ready" and deployment.expires_at is None and not is_served


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
