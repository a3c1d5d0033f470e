"""Retention of versions: delete old previews, and purge deleted versions to a tombstone.

The production version is never touched. Neither are the last versions of a live agent that were in production, since a
rollback may restore them. Each step reads some rows, locks their agents (an agent locked by another transaction is
skipped until the next pass), and checks all conditions again under the lock.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.events import DeploymentDeleted, DeploymentPurged, EventData
from services.domain.state import AgentSnapshot, emit
from services.storage.store import lock_unclaimed, save

_ONE_OF_THE_LAST_IN_PRODUCTION = """d.promoted_at IS NOT NULL AND (
        SELECT count(*) FROM (
            SELECT FROM deployments AS newer
            WHERE newer.agent_id = d.agent_id AND newer.promoted_at > d.promoted_at LIMIT CAST(:keep AS bigint)
        ) AS newer
    ) < CAST(:keep AS bigint)"""

# The age of a version counts from its last announcement. A pod's clock may be behind, so the row's creation is a bound.
_TOO_OLD = f"""d.expires_at IS NULL AND NOT d.is_production AND d.draining_since IS NULL
    AND greatest(d.created_at, d.registered_at) < CAST(:before AS timestamptz)
    AND NOT ({_ONE_OF_THE_LAST_IN_PRODUCTION})"""

_OLD_PREVIEWS = text(f"""
SELECT d.id, d.agent_id, d.created_at AS since, {_TOO_OLD} AS ripe
FROM deployments AS d
WHERE d.expires_at IS NULL AND d.created_at < CAST(:before AS timestamptz)
    AND (d.created_at, d.id) > (CAST(:since AS timestamptz), CAST(:id AS text))
ORDER BY d.created_at, d.id
LIMIT :limit
""")  # noqa: S608 - built from constants only

_DELETE = text(f"""
UPDATE deployments AS d SET expires_at = clock_timestamp()
FROM unnest(CAST(:ids AS text[])) AS target(id)
WHERE d.id = target.id AND d.agent_id = ANY(CAST(:agent_ids AS uuid[])) AND {_TOO_OLD}
RETURNING d.id, d.agent_id, d.expires_at AS at
""")  # noqa: S608 - built from constants only

_DELETED_LONG_AGO = f"""d.purged_at IS NULL AND d.expires_at < CAST(:before AS timestamptz)
    AND (NOT ({_ONE_OF_THE_LAST_IN_PRODUCTION})
        OR EXISTS (SELECT FROM agents AS a WHERE a.id = d.agent_id AND a.deleted_at IS NOT NULL))"""

_DELETED = text(f"""
SELECT d.id, d.agent_id, d.expires_at AS since, {_DELETED_LONG_AGO} AS ripe
FROM deployments AS d
WHERE d.expires_at IS NOT NULL AND d.purged_at IS NULL AND d.expires_at < CAST(:before AS timestamptz)
    AND (d.expires_at, d.id) > (CAST(:since AS timestamptz), CAST(:id AS text))
ORDER BY d.expires_at, d.id
LIMIT :limit
""")  # noqa: S608 - built from constants only

# The tombstone still describes the version and reserves its id for ever.
_PURGE = text(f"""
WITH purged AS (
UPDATE deployments AS d SET
    purged_at = clock_timestamp(),
    registration_metadata = NULL,
    status_reason = NULL,
    acp_url = NULL,
    rpc_path = DEFAULT,
    health_path = DEFAULT,
    error_style = DEFAULT,
    sgp_deploy_id = NULL,
    helm_release_name = NULL
FROM unnest(CAST(:ids AS text[])) AS target(id)
WHERE d.id = target.id AND d.agent_id = ANY(CAST(:agent_ids AS uuid[])) AND {_DELETED_LONG_AGO}
RETURNING d.id, d.agent_id, d.purged_at AS at
), gone AS (
    DELETE FROM instances AS i USING purged WHERE i.deployment_id = purged.id
)
SELECT id, agent_id, at FROM purged
""")  # noqa: S608 - built from constants only


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row that a step read, in the order of its query: time, then id; of events, the id alone."""

    since: datetime
    id: str


START = Cursor(datetime.min.replace(tzinfo=UTC), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """Limits of one step: versions older than `before`, except the last `keep` in production; at most `rows` rows."""

    before: datetime
    keep: int
    rows: int


@dataclass(frozen=True, slots=True)
class TaskStep:
    """The result of one step: how many rows it changed or removed, and where to continue; None if nothing is left."""

    rows: int
    cursor: Cursor | None


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of step: the query that finds rows, the statement that changes them, and the event for each change."""

    find: TextClause
    change: TextClause
    event_of: Callable[[AgentSnapshot, Row[*tuple[Any, ...]]], EventData]


async def delete_old_previews(session: AsyncSession, limits: StepLimits, after: Cursor = START) -> TaskStep:
    """Delete previews whose creation and last announcement are too old; the effect equals a delete request.

    Others see the deletions and their events once the transaction is committed.
    """
    return await _step(session, _Kind(_OLD_PREVIEWS, _DELETE, _deleted), limits, after)


async def purge_deleted(session: AsyncSession, limits: StepLimits, after: Cursor = START) -> TaskStep:
    """Reduce versions deleted too long ago to a tombstone; id, agent, image, status and times stay for ever.

    For a deleted agent, this includes its last production versions. Others see the changes and their events once the
    transaction is committed.
    """
    return await _step(session, _Kind(_DELETED, _PURGE, _purged), limits, after)


async def _step(session: AsyncSession, kind: _Kind, limits: StepLimits, after: Cursor) -> TaskStep:
    conditions = {"before": limits.before, "keep": limits.keep}
    page = {"since": after.since, "id": after.id, "limit": limits.rows}
    found = (await session.execute(kind.find, {**conditions, **page})).all()
    reached = Cursor(found[-1].since, found[-1].id) if len(found) == limits.rows else None
    ripe = [row for row in found if row.ripe]
    if not ripe:
        return TaskStep(0, reached)
    agents = await lock_unclaimed(session, {row.agent_id for row in ripe})
    targets = {"ids": [row.id for row in ripe], "agent_ids": list(agents)}
    changed = (await session.execute(kind.change, {**conditions, **targets})).all()
    states: dict[UUID, AgentSnapshot] = {}
    for row in sorted(changed, key=lambda row: (row.at, row.id)):
        state = states.get(row.agent_id) or AgentSnapshot(agent=agents[row.agent_id], now=row.at)
        states[row.agent_id] = emit(state, kind.event_of(state, row), subject=row.id)
    await save(
        session,
        agents=[(agents[agent_id], state.agent) for agent_id, state in states.items()],
        deployments=(),
        ledger=(),
        events=[event for state in states.values() for event in state.events],
    )
    return TaskStep(len(changed), reached)


def _deleted(state: AgentSnapshot, row: Row[*tuple[Any, ...]]) -> EventData:
    return DeploymentDeleted(
        agent_id=str(state.agent.id), agent_name=state.agent.name, deployment_id=row.id, expires_at=row.at
    )


def _purged(state: AgentSnapshot, row: Row[*tuple[Any, ...]]) -> EventData:
    return DeploymentPurged(
        agent_id=str(state.agent.id), agent_name=state.agent.name, deployment_id=row.id, purged_at=row.at
    )
