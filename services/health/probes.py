"""The database side of health probes: one short transaction claims what is due, another applies the results.

No lock is held in between, while the probes run. A claim moves `due_at` forward, so a janitor that dies after it delays
the next probe by one interval only. Any number of janitors can share the work. Both transactions write the narrow table
`probes`; a row of `deployments` is written by a verdict only.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from msgspec.structs import replace
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
from services.domain.state import AgentSnapshot, DeploymentState, FailedProbes, Instances, InstanceState
from services.health.janitors import JANITOR_ALIVE
from services.settings import Settings
from services.storage.store import (
    load_deployments,
    load_facts,
    load_instances,
    lock_state,
    lock_unclaimed,
    save,
    save_state,
)

# Deployment id and instance id.
PodKey = tuple[str, str]

# Production first. Rows locked by another transaction wait for the next claim. So does production that needs the
# opinion of another janitor than this one.
_DUE = text("""
WITH production AS MATERIALIZED (
    SELECT deployment_id, instance_id FROM probes
    WHERE is_production AND due_at <= statement_timestamp()
        AND (opinion_until IS NULL OR opinion_until <= statement_timestamp() OR failed_by IS DISTINCT FROM :janitor_id)
    ORDER BY due_at
    LIMIT :limit
    FOR NO KEY UPDATE SKIP LOCKED
), previews AS MATERIALIZED (
    SELECT deployment_id, instance_id FROM probes
    WHERE NOT is_production AND due_at <= statement_timestamp()
    ORDER BY due_at
    LIMIT (SELECT greatest(least(CAST(:previews AS bigint), CAST(:limit AS bigint) - count(*)), 0) FROM production)
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT deployment_id, instance_id FROM production UNION ALL SELECT deployment_id, instance_id FROM previews
""")

# A statement of its own, after the locks: what a registration has committed before is seen. Rows of pods that are no
# longer probed are deleted; a later announcement inserts them again.
_TARGETS = text("""
WITH claimed AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:instance_ids AS text[])) AS c(deployment_id, instance_id)
), target AS MATERIALIZED (
    SELECT d.id, p.instance_id, d.agent_id, d.is_production, pod.*, p.streak
    FROM claimed JOIN probes AS p USING (deployment_id, instance_id)
    JOIN deployments AS d ON d.id = p.deployment_id
    LEFT JOIN instances AS i ON i.deployment_id = p.deployment_id AND i.instance_id = p.instance_id
    CROSS JOIN LATERAL (
        SELECT d.status, d.status_changed_at, d.acp_url, d.health_path, d.registered_at, d.ready_at
        WHERE NOT d.has_instances AND p.instance_id = ''
        UNION ALL
        SELECT i.status, i.status_changed_at, i.acp_url, i.health_path, i.registered_at, i.ready_at
        WHERE d.has_instances AND i.instance_id IS NOT NULL
    ) AS pod
    WHERE d.expires_at IS NULL AND pod.acp_url IS NOT NULL AND (pod.status <> 'Failed' OR pod.ready_at IS NOT NULL)
), removed AS (
    DELETE FROM probes AS p USING claimed AS c
    WHERE p.deployment_id = c.deployment_id AND p.instance_id = c.instance_id
        AND (p.deployment_id, p.instance_id) NOT IN (SELECT id, instance_id FROM target)
)
SELECT target.*, a.on_failure, a.probe_interval_seconds, a.probe_threshold, a.probe_timeout_seconds
FROM target JOIN agents AS a ON a.id = target.agent_id
ORDER BY target.is_production DESC
""")

_CLAIM = text("""
UPDATE probes AS p
SET due_at = clock_timestamp() + make_interval(secs => r.seconds), is_production = r.is_production
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    id text, instance_id text, seconds double precision, is_production boolean)
WHERE p.deployment_id = r.id AND p.instance_id = r.instance_id
""")

# Another janitor that is alive, and trusts its own probes.
_HAS_PEER = text("""
SELECT EXISTS (
    SELECT FROM janitors
    WHERE id <> :janitor_id AND panic_since IS NULL AND seen_at > clock_timestamp() - CAST(:alive AS interval)
)
""")

_FAILURES = text("""
SELECT deployment_id, instance_id, failing_since, failed_by, confirmed, opinion_until, last_call_at
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
    id text, instance_id text, streak integer, failing_since timestamptz, failed_by uuid, confirmed boolean,
    opinion_until timestamptz)
WHERE p.deployment_id = r.id AND p.instance_id = r.instance_id
""")

_OVERDUE = text("""
(
    SELECT id, agent_id, status_changed_at FROM deployments
    WHERE expires_at IS NULL AND status = 'Pending'
        AND status_changed_at <= statement_timestamp() - CAST(:age AS interval)
    ORDER BY status_changed_at
    LIMIT :limit
)
UNION ALL
(
    SELECT d.id, d.agent_id, i.status_changed_at FROM instances AS i JOIN deployments AS d ON d.id = i.deployment_id
    WHERE i.status <> 'Ready' AND i.status = 'Pending' AND d.expires_at IS NULL AND d.has_instances
        AND i.status_changed_at <= statement_timestamp() - CAST(:age AS interval)
    ORDER BY i.status_changed_at
    LIMIT :limit
)
ORDER BY status_changed_at
LIMIT :limit
""")

# Productions without any instance are not probed, so no failed probe leads to their rollback.
_ABANDONED = text("""
SELECT DISTINCT d.agent_id, d.id
FROM departed_instances AS gone
JOIN deployments AS d ON d.id = gone.deployment_id
JOIN agents AS a ON a.id = d.agent_id
WHERE gone.departed_at > statement_timestamp() - CAST(:age AS interval)
    AND d.is_production AND d.status = 'Failed' AND a.on_failure = 'rollback'
    AND NOT EXISTS (SELECT FROM instances AS i WHERE i.deployment_id = d.id)
ORDER BY d.id
""")
# How long a rollback is tried after the last instance has gone.
ABANDONED_FOR = timedelta(minutes=10)


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
    claimed = (await session.execute(_DUE, due)).all()
    if not claimed:
        return []
    ids = {"ids": [row.deployment_id for row in claimed], "instance_ids": [row.instance_id for row in claimed]}
    targets = [_probe_target(row, settings) for row in await session.execute(_TARGETS, ids)]
    if targets:
        waits = [
            {
                "id": each.id,
                "instance_id": each.instance_id,
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
    loaded = await _with_failures(session, Pods(before.deployments, before.instances))
    before = replace(before, deployments=loaded.deployments, instances=loaded.instances)
    after = apply_probe(before, result, has_peer=await _has_peer(session, [result]))
    await save_state(session, before, after)
    await _record(session, loaded, Pods(after.deployments, after.instances))
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
    deployments = await load_deployments(session, deployment_ids)
    loaded = await _with_failures(session, Pods(deployments, await load_instances(session, deployments.values())))
    has_peer = await _has_peer(session, results)
    states = {
        agent.id: AgentSnapshot(
            agent=agent,
            now=facts[agent.id].now,
            last_cutover_at=facts[agent.id].last_cutover_at,
            deployments={each.id: each for each in loaded.deployments.values() if each.agent_id == agent.id},
            instances={
                id_: own for id_, own in loaded.instances.items() if loaded.deployments[id_].agent_id == agent.id
            },
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
    changed = Pods(
        {each.id: each for state in states.values() for each in state.deployments.values()},
        {id_: own for state in states.values() for id_, own in state.instances.items()},
    )
    await save(
        session,
        agents=[(agents[state.agent.id], state.agent) for state in states.values()],
        deployments=[(loaded.deployments[each.id], each) for each in changed.deployments.values()],
        ledger=[row for state in states.values() for row in state.ledger],
        events=[event for state in states.values() for event in state.events],
        instances=(loaded.instances, changed.instances),
    )
    await _record(session, loaded, changed)
    return applied


async def overdue(session: AsyncSession, deadline: timedelta, limit: int) -> list[tuple[UUID, str]]:
    """Agent and deployment ids of deployments that have been Pending for at least `deadline`, the oldest first."""
    rows = await session.execute(_OVERDUE, {"age": deadline, "limit": limit})
    return [(row.agent_id, row.id) for row in rows]


async def abandoned(session: AsyncSession) -> list[tuple[UUID, str]]:
    """Agent and deployment ids of failed productions to roll back whose last instance has gone in the last minutes."""
    rows = await session.execute(_ABANDONED, {"age": ABANDONED_FOR})
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


@dataclass(frozen=True, slots=True)
class Pods:
    """What is probed: instances, and deployments that have none."""

    deployments: Mapping[str, DeploymentState]
    instances: Instances

    def by_key(self) -> dict[PodKey, DeploymentState | InstanceState]:
        """Each by deployment and instance id."""
        single: dict[PodKey, DeploymentState | InstanceState] = {
            (each.id, ""): each for each in self.deployments.values() if not each.has_instances
        }
        return single | {(id_, each.instance_id): each for id_, own in self.instances.items() for each in own.values()}


async def _with_failures(session: AsyncSession, pods: Pods) -> Pods:
    """The pods with what is known about their failed probes. Call it after the lock of their agents."""
    failing = sorted({key[0] for key, each in pods.by_key().items() if each.probe_streak < 0})
    if not failing:
        return pods
    failures = {
        (row.deployment_id, row.instance_id): FailedProbes(
            since=row.failing_since,
            janitor_id=row.failed_by,
            confirmed=row.confirmed,
            opinion_until=row.opinion_until,
            last_call_at=row.last_call_at,
        )
        for row in await session.execute(_FAILURES, {"ids": failing})
    }
    deployments = {
        id_: each if each.has_instances else replace(each, failures=failures.get((id_, ""), each.failures))
        for id_, each in pods.deployments.items()
    }
    instances = {
        id_: {
            each.instance_id: replace(each, failures=failures.get((id_, each.instance_id), each.failures))
            for each in own.values()
        }
        for id_, own in pods.instances.items()
    }
    return Pods(deployments, instances)


async def _record(session: AsyncSession, before: Pods, after: Pods) -> None:
    """Store the streak and the failures of those pods for which they have changed."""
    known = before.by_key()
    rows = [
        {
            "id": key[0],
            "instance_id": key[1],
            "streak": each.probe_streak,
            "failing_since": each.failures.since,
            "failed_by": each.failures.janitor_id,
            "confirmed": each.failures.confirmed,
            "opinion_until": each.failures.opinion_until,
        }
        for key, each in after.by_key().items()
        if (each.probe_streak, each.failures) != (known[key].probe_streak, known[key].failures)
    ]
    if rows:
        await session.execute(_RECORD, {"rows": to_json(rows).decode()})


def _probe_target(row: Row[*tuple[Any, ...]], settings: Settings) -> ProbeTarget:
    return ProbeTarget(
        id=row.id,
        instance_id=row.instance_id,
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
