"""The database side of health probes: one short transaction claims what is due, another applies the results.

No lock is held in between, while the probes run. A claim moves `probe_due_at` forward, so a janitor that dies after it
delays the next probe by one interval only. Any number of janitors can share the work.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.health_policy import (
    ProbeResult,
    ProbeTarget,
    apply_probe,
    expire,
    make_probe_policy,
    wait_before_next,
)
from services.domain.state import AgentSnapshot
from services.settings import Settings
from services.storage.store import load_deployments, load_facts, lock_state, lock_unclaimed, save, save_state

# The conditions match the partial index. Rows locked by another transaction wait for the next claim. MATERIALIZED
# makes the LIMIT run once: below a join, the planner could repeat it for each joined row.
_DUE = text("""
WITH due AS MATERIALIZED (
    SELECT id, agent_id, status, status_changed_at, is_production, acp_url, health_path, registered_at, probe_streak
    FROM deployments
    WHERE expires_at IS NULL AND acp_url IS NOT NULL AND (status <> 'Failed' OR ready_at IS NOT NULL)
        AND probe_due_at <= statement_timestamp()
    ORDER BY probe_due_at
    LIMIT :limit
    FOR NO KEY UPDATE SKIP LOCKED)
SELECT due.*, a.on_failure, a.probe_interval_seconds, a.probe_threshold, a.probe_timeout_seconds
FROM due JOIN agents AS a ON a.id = due.agent_id
""")

_CLAIM = text("""
UPDATE deployments AS d SET probe_due_at = clock_timestamp() + make_interval(secs => r.seconds)
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id text, seconds double precision)
WHERE d.id = r.id
""")

_OVERDUE = text("""
SELECT id, agent_id FROM deployments
WHERE expires_at IS NULL AND status = 'Pending' AND status_changed_at <= statement_timestamp() - CAST(:age AS interval)
ORDER BY status_changed_at
LIMIT :limit
""")


async def claim(session: AsyncSession, settings: Settings, limit: int) -> list[ProbeTarget]:
    """Claim up to `limit` deployments that are due.

    Once the transaction is committed, no other janitor gets them before their next interval.
    """
    targets = [_probe_target(row, settings) for row in await session.execute(_DUE, {"limit": limit})]
    if targets:
        waits = [
            {"id": each.id, "seconds": wait_before_next(each, random.random()).total_seconds()}  # noqa: S311 - jitter
            for each in targets
        ]
        await session.execute(_CLAIM, {"rows": to_json(waits).decode()})
    return targets


async def give_verdict(session: AsyncSession, result: ProbeResult) -> AgentSnapshot:
    """Apply one probe result; returns the agent after it.

    Others see the effect once the transaction is committed. Raises `AgentNotFound`.
    """
    before = await lock_state(session, result.target.agent_id, result.target.id)
    after = apply_probe(before, result)
    await save_state(session, before, after)
    return after


async def give_verdicts(session: AsyncSession, results: Sequence[ProbeResult]) -> list[AgentSnapshot | None]:
    """Apply probe results; returns the agent after each one, or None if another transaction holds its lock.

    Each returned snapshot carries only the events of its own probe.

    Others see the effects once the transaction is committed.
    """
    agents = await lock_unclaimed(session, (result.target.agent_id for result in results))
    facts = await load_facts(session, agents)
    deployment_ids = {result.target.id for result in results if result.target.agent_id in agents}
    deployment_ids |= {agent.production_deployment_id for agent in agents.values() if agent.production_deployment_id}
    loaded = await load_deployments(session, deployment_ids)
    states = {
        agent.id: AgentSnapshot(
            agent=agent,
            now=facts[agent.id].now,
            last_cutover_at=facts[agent.id].last_cutover_at,
            deployments={each.id: each for each in loaded.values() if each.agent_id == agent.id},
        )
        for agent in agents.values()
    }
    applied: list[AgentSnapshot | None] = []
    for result in results:
        before = states.get(result.target.agent_id)
        if before is None:
            applied.append(None)
            continue
        after = states[result.target.agent_id] = apply_probe(before, result)
        applied.append(replace(after, events=after.events[len(before.events) :]))
    await save(
        session,
        agents=[(agents[state.agent.id], state.agent) for state in states.values()],
        deployments=[(loaded[each.id], each) for state in states.values() for each in state.deployments.values()],
        ledger=[row for state in states.values() for row in state.ledger],
        events=[event for state in states.values() for event in state.events],
    )
    return applied


async def overdue(session: AsyncSession, deadline: timedelta, limit: int) -> list[tuple[UUID, str]]:
    """Agent and deployment ids of deployments that have been Pending for at least `deadline`, the oldest first."""
    rows = await session.execute(_OVERDUE, {"age": deadline, "limit": limit})
    return [(row.agent_id, row.id) for row in rows]


async def expire_pending(
    session: AsyncSession, agent_id: UUID, deployment_id: str, deadline: timedelta
) -> AgentSnapshot:
    """Set the deployment Failed if it is still Pending past its deadline; returns the agent after that."""
    before = await lock_state(session, agent_id, deployment_id)
    after = expire(before, deployment_id, deadline)
    await save_state(session, before, after)
    return after


def _probe_target(row: Row[*tuple[Any, ...]], settings: Settings) -> ProbeTarget:
    return ProbeTarget(
        id=row.id,
        agent_id=row.agent_id,
        status=row.status,
        status_changed_at=row.status_changed_at,
        is_production=row.is_production,
        acp_url=row.acp_url,
        health_path=row.health_path,
        registered_at=row.registered_at,
        streak=row.probe_streak,
        on_failure=row.on_failure,
        policy=make_probe_policy(settings, row.probe_interval_seconds, row.probe_threshold, row.probe_timeout_seconds),
    )
