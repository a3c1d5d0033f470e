"""The database side of health probes: one short transaction claims what is due, another applies the results.

No lock is held in between, while the probes run. A claim moves `due_at` forward, so a janitor that dies after it delays
the next probe by one interval only. Any number of janitors can share the work. Both transactions write the narrow table
`probes`; a row of `deployments` is written by a verdict only.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
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
from services.domain.state import AgentSnapshot, DeploymentState, FailedProbes
from services.health.janitors import JANITOR_ALIVE
from services.settings import Settings
from services.storage.store import load_deployments, load_facts, lock_state, lock_unclaimed, save, save_state

# Production first. Rows locked by another transaction wait for the next claim. So does production that needs the
# opinion of another janitor than this one.
_DUE = text("""
WITH production AS MATERIALIZED (
    SELECT deployment_id FROM probes
    WHERE is_production AND due_at <= statement_timestamp()
        AND (opinion_until IS NULL OR opinion_until <= statement_timestamp() OR failed_by IS DISTINCT FROM :janitor_id)
    ORDER BY due_at
    LIMIT :limit
    FOR NO KEY UPDATE SKIP LOCKED
), previews AS MATERIALIZED (
    SELECT deployment_id FROM probes
    WHERE NOT is_production AND due_at <= statement_timestamp()
    ORDER BY due_at
    LIMIT (SELECT greatest(least(CAST(:previews AS bigint), CAST(:limit AS bigint) - count(*)), 0) FROM production)
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT deployment_id FROM production UNION ALL SELECT deployment_id FROM previews
""")

# A statement of its own, after the locks: what a registration has committed before is seen. Rows of deployments that
# are no longer probed are deleted; a later announcement inserts them again.
_TARGETS = text("""
WITH target AS MATERIALIZED (
    SELECT d.id, d.agent_id, d.status, d.status_changed_at, d.is_production, d.acp_url, d.health_path, d.registered_at,
        p.streak
    FROM probes AS p JOIN deployments AS d ON d.id = p.deployment_id
    WHERE p.deployment_id = ANY(CAST(:ids AS text[]))
        AND d.expires_at IS NULL AND d.acp_url IS NOT NULL AND (d.status <> 'Failed' OR d.ready_at IS NOT NULL)
), removed AS (
    DELETE FROM probes
    WHERE deployment_id = ANY(CAST(:ids AS text[])) AND deployment_id NOT IN (SELECT id FROM target)
)
SELECT target.*, a.on_failure, a.probe_interval_seconds, a.probe_threshold, a.probe_timeout_seconds
FROM target JOIN agents AS a ON a.id = target.agent_id
ORDER BY target.is_production DESC
""")

_CLAIM = text("""
UPDATE probes AS p
SET due_at = clock_timestamp() + make_interval(secs => r.seconds), is_production = r.is_production
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id text, seconds double precision, is_production boolean)
WHERE p.deployment_id = r.id
""")

# Another janitor that is alive, and trusts its own probes.
_HAS_PEER = text("""
SELECT EXISTS (
    SELECT FROM janitors
    WHERE id <> :janitor_id AND panic_since IS NULL AND seen_at > clock_timestamp() - CAST(:alive AS interval)
)
""")

_FAILURES = text("""
SELECT deployment_id, failing_since, failed_by, confirmed, opinion_until, last_call_at
FROM probes WHERE deployment_id = ANY(CAST(:ids AS text[])) AND streak < 0
""")

# Production that waits for a second opinion is due at once, for another janitor.
_RECORD = text("""
UPDATE probes AS p
SET streak = r.streak, failing_since = r.failing_since, failed_by = r.failed_by, confirmed = r.confirmed,
    opinion_until = r.opinion_until,
    due_at = CASE
        WHEN r.opinion_until IS NOT NULL AND p.opinion_until IS NULL THEN clock_timestamp() ELSE p.due_at
    END
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    id text, streak integer, failing_since timestamptz, failed_by uuid, confirmed boolean, opinion_until timestamptz)
WHERE p.deployment_id = r.id
""")

_OVERDUE = text("""
SELECT id, agent_id FROM deployments
WHERE expires_at IS NULL AND status = 'Pending' AND status_changed_at <= statement_timestamp() - CAST(:age AS interval)
ORDER BY status_changed_at
LIMIT :limit
""")


async def claim(
    session: AsyncSession,
    settings: Settings,
    limit: int,
    *,
    previews: int | None = None,
    janitor_id: UUID | None = None,
) -> list[ProbeTarget]:
    """Claim up to `limit` deployments that are due, production first, and at most `previews` of the others.

    Once the transaction is committed, no other janitor gets them before their next interval.
    """
    due = {"limit": limit, "previews": limit if previews is None else previews, "janitor_id": janitor_id}
    ids = list(await session.scalars(_DUE, due))
    if not ids:
        return []
    targets = [_probe_target(row, settings) for row in await session.execute(_TARGETS, {"ids": ids})]
    if targets:
        waits = [
            {
                "id": each.id,
                "seconds": wait_before_next(each, random.random()).total_seconds(),  # noqa: S311 - jitter
                "is_production": each.is_production,
            }
            for each in targets
        ]
        await session.execute(_CLAIM, {"rows": to_json(waits).decode()})
    return targets


async def give_verdict(session: AsyncSession, result: ProbeResult) -> AgentSnapshot:
    """Apply one probe result; returns the agent after it.

    Others see the effect once the transaction is committed. Raises `AgentNotFound`.
    """
    before = await lock_state(session, result.target.agent_id, result.target.id)
    loaded = await _with_failures(session, before.deployments)
    before = replace(before, deployments=loaded)
    after = apply_probe(before, result, has_peer=await _has_peer(session, [result]))
    await save_state(session, before, after)
    await _record(session, loaded, after.deployments.values())
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
    loaded = await _with_failures(session, await load_deployments(session, deployment_ids))
    has_peer = await _has_peer(session, results)
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
        after = states[result.target.agent_id] = apply_probe(before, result, has_peer=has_peer)
        applied.append(replace(after, events=after.events[len(before.events) :]))
    changed = [each for state in states.values() for each in state.deployments.values()]
    await save(
        session,
        agents=[(agents[state.agent.id], state.agent) for state in states.values()],
        deployments=[(loaded[each.id], each) for each in changed],
        ledger=[row for state in states.values() for row in state.ledger],
        events=[event for state in states.values() for event in state.events],
    )
    await _record(session, loaded, changed)
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


async def _has_peer(session: AsyncSession, results: Iterable[ProbeResult]) -> bool:
    """Whether another janitor could confirm a failure of production in these results."""
    janitor_ids = {each.janitor_id for each in results if each.failure is not None and each.target.is_production}
    janitor_id = next((each for each in janitor_ids if each is not None), None)
    if janitor_id is None:
        return False
    return bool(await session.scalar(_HAS_PEER, {"janitor_id": janitor_id, "alive": JANITOR_ALIVE}))


async def _with_failures(
    session: AsyncSession, deployments: Mapping[str, DeploymentState]
) -> dict[str, DeploymentState]:
    """The deployments with what is known about their failed probes. Call it after the lock of their agents."""
    failing = [each.id for each in deployments.values() if each.probe_streak < 0]
    if not failing:
        return dict(deployments)
    failures = {
        row.deployment_id: FailedProbes(
            since=row.failing_since,
            janitor_id=row.failed_by,
            confirmed=row.confirmed,
            opinion_until=row.opinion_until,
            last_call_at=row.last_call_at,
        )
        for row in await session.execute(_FAILURES, {"ids": failing})
    }
    return {each.id: replace(each, failures=failures.get(each.id, each.failures)) for each in deployments.values()}


async def _record(
    session: AsyncSession, before: Mapping[str, DeploymentState], after: Iterable[DeploymentState]
) -> None:
    """Store the streak and the failures of those deployments for which they have changed."""
    rows = [
        {
            "id": each.id,
            "streak": each.probe_streak,
            "failing_since": each.failures.since,
            "failed_by": each.failures.janitor_id,
            "confirmed": each.failures.confirmed,
            "opinion_until": each.failures.opinion_until,
        }
        for each in after
        if (each.probe_streak, each.failures) != (before[each.id].probe_streak, before[each.id].failures)
    ]
    if rows:
        await session.execute(_RECORD, {"rows": to_json(rows).decode()})


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
        streak=row.streak,
        on_failure=row.on_failure,
        policy=make_probe_policy(settings, row.probe_interval_seconds, row.probe_threshold, row.probe_timeout_seconds),
    )
