"""Draining: a deployment that has stopped serving keeps its open conversations until they end, or until a deadline.

It is drained once, when none is open any more: only on a count of zero that was read under the lock of its agent, after
a lock of its own row. A conversation that begins holds a lock of that row until it is committed, so none is overlooked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, column, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.events import DeploymentDrained
from services.domain.state import AgentSnapshot, emit
from services.routing.conversations import DEFAULT_TERMS, ENDS_AT, IS_OPEN, ConversationTerms
from services.storage.models import Deployment
from services.storage.store import load_facts, lock_unclaimed, save

# When the deployment `d` of the agent `a` is drained at the latest.
_DEADLINE = """d.draining_since
    + coalesce(make_interval(secs => a.drain_deadline_seconds), CAST(:drain_deadline AS interval))"""

# A column for queries of `deployments`: how many conversations are open, and until when at the latest; NULL for a
# deployment that is not draining.
DRAINING = (
    text(f"""
SELECT CASE WHEN deployments.draining_since IS NOT NULL AND NOT deployments.is_production THEN (
    SELECT jsonb_build_array(count(c.deployment_id), least(max({ENDS_AT}), min({_DEADLINE})))
    FROM deployments AS d JOIN agents AS a ON a.id = d.agent_id
    LEFT JOIN conversations AS c ON c.deployment_id = d.id AND {IS_OPEN}
    WHERE d.id = deployments.id
) END
""")  # noqa: S608 - built from constants only
    .columns(column("draining", JSONB))
    .scalar_subquery()
    .label("draining")
)
_OF_ONE = select(DRAINING).select_from(Deployment).where(Deployment.id == bindparam("id"))

# Without locks, so a deployment found here may not be drained after all.
_LIKELY = text(f"""
SELECT d.id, d.agent_id
FROM deployments AS d JOIN agents AS a ON a.id = d.agent_id
WHERE d.draining_since IS NOT NULL AND NOT d.is_production AND d.expires_at IS NULL AND a.deleted_at IS NULL
    AND ({_DEADLINE} <= statement_timestamp()
        OR NOT EXISTS (SELECT FROM conversations AS c WHERE c.deployment_id = d.id AND {IS_OPEN}))
ORDER BY d.draining_since
LIMIT :limit
""")  # noqa: S608 - built from constants only

# Waits for conversations that are beginning, whose transactions hold a lock of the row.
_LOCK = text("""
SELECT FROM deployments WHERE id = ANY(CAST(:ids AS text[])) ORDER BY id FOR NO KEY UPDATE
""")

# A statement of its own, after the locks.
_OPEN = text(f"""
SELECT d.id, d.agent_id, d.draining_since, {_DEADLINE} <= statement_timestamp() AS is_over,
    (SELECT count(*) FROM conversations AS c WHERE c.deployment_id = d.id AND {IS_OPEN}) AS still_open
FROM deployments AS d JOIN agents AS a ON a.id = d.agent_id
WHERE d.id = ANY(CAST(:ids AS text[])) AND d.draining_since IS NOT NULL AND NOT d.is_production
    AND d.expires_at IS NULL AND a.deleted_at IS NULL
ORDER BY d.draining_since
""")  # noqa: S608 - built from constants only

_DRAINED = text("""
UPDATE deployments AS d SET draining_since = NULL, drained_at = r.at
FROM unnest(CAST(:ids AS text[]), CAST(:times AS timestamptz[])) AS r(id, at)
WHERE d.id = r.id
""")


@dataclass(frozen=True, slots=True)
class OpenConversations:
    """How many conversations of a draining deployment are open, and until when at the latest."""

    number: int
    until: datetime | None
    """None if no conversation is open."""


def conversations_of(value: Sequence[Any] | None) -> OpenConversations | None:
    """The open conversations in a value of the column `DRAINING`; None if the deployment is not draining."""
    if value is None:
        return None
    number, until = value
    return OpenConversations(number, datetime.fromisoformat(until).astimezone(UTC) if number else None)


async def open_conversations(
    session: AsyncSession, deployment_id: str, terms: ConversationTerms = DEFAULT_TERMS
) -> OpenConversations | None:
    """The open conversations of a deployment that is draining."""
    return conversations_of(await session.scalar(_OF_ONE, {"id": deployment_id, **terms.parameters()}))


async def finish_draining(
    session: AsyncSession, terms: ConversationTerms = DEFAULT_TERMS, *, limit: int = 100
) -> list[DeploymentDrained]:
    """Drain the deployments whose conversations have ended, or whose deadline has passed; returns their events.

    Deployments whose agent another transaction has locked are left for the next time. Others see the effect once the
    transaction is committed.
    """
    likely = (await session.execute(_LIKELY, {"limit": limit, **terms.parameters()})).all()
    agents = await lock_unclaimed(session, {row.agent_id for row in likely})
    ids = [row.id for row in likely if row.agent_id in agents]
    if not ids:
        return []
    await session.execute(_LOCK, {"ids": ids})
    rows = (await session.execute(_OPEN, {"ids": ids, **terms.parameters()})).all()
    facts = await load_facts(session, agents)
    states: dict[UUID, AgentSnapshot] = {}
    drained: dict[str, DeploymentDrained] = {}
    for row in rows:
        if row.still_open and not row.is_over:
            continue
        now = facts[row.agent_id].now
        state = states.get(row.agent_id) or AgentSnapshot(agent=agents[row.agent_id], now=now)
        drained[row.id] = data = DeploymentDrained(
            agent_id=str(row.agent_id),
            agent_name=state.agent.name,
            deployment_id=row.id,
            reason="deadline" if row.still_open else "conversations-ended",
            moved=row.still_open,
            draining_since=row.draining_since,
            drained_at=now,
        )
        states[row.agent_id] = emit(state, data, subject=row.id)
    if not drained:
        return []
    times = [each.drained_at for each in drained.values()]
    await session.execute(_DRAINED, {"ids": list(drained), "times": times})
    await save(
        session,
        agents=[(agents[agent_id], state.agent) for agent_id, state in states.items()],
        deployments=(),
        ledger=(),
        events=[event for state in states.values() for event in state.events],
    )
    return list(drained.values())
