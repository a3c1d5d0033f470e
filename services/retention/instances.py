"""Retention of instances: remove those that have failed for long, and forget those that are gone."""

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.instances import remove_instance
from services.domain.state import AgentSnapshot
from services.storage.store import load_deployments, load_facts, load_instances, lock_unclaimed, save, save_departed

REMOVED = "it has failed for long"

# The last instance of a deployment stays: it shows where the deployment was, and may recover.
_FAILED_LONG_AGO = text("""
SELECT i.deployment_id, i.agent_id
FROM instances AS i JOIN deployments AS d ON d.id = i.deployment_id AND d.expires_at IS NULL
WHERE i.status <> 'Ready' AND i.status = 'Failed' AND i.status_changed_at < CAST(:before AS timestamptz)
    AND EXISTS (
        SELECT FROM instances AS other
        WHERE other.deployment_id = i.deployment_id AND other.instance_id <> i.instance_id
    )
ORDER BY i.status_changed_at
LIMIT :limit
""")

_FORGET = text("""
WITH old AS (
    SELECT agent_name, deployment_id, instance_id FROM departed_instances WHERE departed_at < :before
    ORDER BY departed_at LIMIT :limit FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM departed_instances AS d USING old
    WHERE (d.agent_name, d.deployment_id, d.instance_id) = (old.agent_name, old.deployment_id, old.instance_id)
    RETURNING d.instance_id
)
SELECT count(*) FROM removed
""")


async def remove_failed_instances(session: AsyncSession, before: datetime, limit: int) -> int:
    """Remove instances that have been Failed since before `before`, except the last one of each deployment.

    Returns how many it removed. Agents that another transaction has locked are left for the next pass. Others see the
    removals and their events once the transaction is committed.
    """
    found = (await session.execute(_FAILED_LONG_AGO, {"before": before, "limit": limit})).all()
    agents = await lock_unclaimed(session, {row.agent_id for row in found})
    if not agents:
        return 0
    facts = await load_facts(session, agents)
    ids = {row.deployment_id for row in found if row.agent_id in agents}
    deployments = await load_deployments(session, ids | {a.production_deployment_id or "" for a in agents.values()})
    instances = await load_instances(session, deployments.values())
    states = {
        agent.id: AgentSnapshot(
            agent=agent,
            now=facts[agent.id].now,
            last_cutover_at=facts[agent.id].last_cutover_at,
            deployments={each.id: each for each in deployments.values() if each.agent_id == agent.id},
            instances={id_: own for id_, own in instances.items() if deployments[id_].agent_id == agent.id},
        )
        for agent in agents.values()
    }
    removed = 0
    for deployment_id in sorted(ids):
        agent_id = deployments[deployment_id].agent_id
        own = sorted(instances[deployment_id].values(), key=lambda each: each.status_changed_at)
        for instance in own:
            if instance.status != "Failed" or instance.status_changed_at >= before:
                continue
            if len(states[agent_id].instances[deployment_id]) == 1:
                break
            states[agent_id] = remove_instance(
                states[agent_id], deployment_id, instance.instance_id, REMOVED, instance.newest
            )
            removed += 1
    await save(
        session,
        agents=[(agents[agent_id], state.agent) for agent_id, state in states.items()],
        deployments=[(deployments[each.id], each) for state in states.values() for each in state.deployments.values()],
        ledger=(),
        events=[event for state in states.values() for event in state.events],
        instances=(instances, {id_: own for state in states.values() for id_, own in state.instances.items()}),
    )
    gone = {(state.agent.name, *key): at for state in states.values() for key, at in state.departed.items()}
    await save_departed(session, gone)
    return removed


async def forget_departed(session: AsyncSession, before: datetime, limit: int) -> int:
    """Forget at most `limit` instances that departed before `before`; returns how many it forgot."""
    return int(await session.scalar(_FORGET, {"before": before, "limit": limit}) or 0)
