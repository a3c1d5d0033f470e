"""Rollback: to what served before, to a named target, or automatically away from a failed deployment.

The target is probed between two transactions, without a lock: the first one plans the rollback, and the second one
makes it only if, under the lock, the target is still the one that was probed.
"""

from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.caller import Caller
from services.domain.cutover import cutover
from services.domain.readiness import AUTOMATION
from services.domain.state import AgentSnapshot, AgentState
from services.errors import AgentDeletedError, NothingToRollBackTo, TargetMoved
from services.promotion.promote import own_deployment, require_generation, require_ready
from services.promotion.rollback_targets import Target, last_served, rollback_targets
from services.storage.store import load_deployments, lock_state, save_state

LEGACY = "legacy"
# How many targets are probed at most.
ALTERNATIVES = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """The target of a rollback now, None if it serves already, and the other targets, the newest first."""

    agent: AgentState
    target: Target | None
    others: list[Target]


async def plan_rollback(session: AsyncSession, agent_id: UUID, caller: Caller, *, to: str | None = None) -> Plan:
    """What `roll_back` would do now; changes nothing. Raises the same errors."""
    before = await _locked(session, agent_id, to)
    target = await _target(session, before, to, caller)
    others = await rollback_targets(session, agent_id, limit=ALTERNATIVES)
    return Plan(before.agent, target, [other for other in others if target is None or not other.matches(target)])


async def roll_back(
    session: AsyncSession, agent_id: UUID, caller: Caller, *, to: str | None = None, probed: Target | None = None
) -> AgentSnapshot:
    """Go back to what served before, or to `to`: a deployment id or `legacy`. Pauses automatic promotion.

    Returns the agent. Rolling back twice goes back twice. Raises the errors of `promote`, `NothingToRollBackTo`, and
    `TargetMoved` if the target is not the `probed` one (None allows any). Others see the effect once the transaction is
    committed.
    """
    before = await _locked(session, agent_id, to)
    target = await _target(session, before, to, caller)
    if target is not None and probed is not None and not target.matches(probed):
        raise TargetMoved
    before, state = await _restore(session, before, target, caller)
    after = replace(state, agent=replace(state.agent, auto_promote_paused=True))
    await save_state(session, before, after)
    return after


async def rollback_candidates(session: AsyncSession, agent_id: UUID, failed_id: str) -> list[Target]:
    """The targets of an automatic rollback away from this deployment, the newest first.

    Empty unless the deployment is in production and Failed, and the agent's `on_failure` is `rollback`.
    """
    state = await lock_state(session, agent_id)
    return await rollback_targets(session, agent_id, limit=ALTERNATIVES) if _must_roll_back(state, failed_id) else []


async def roll_back_failed(session: AsyncSession, agent_id: UUID, failed_id: str, probed: Target) -> AgentSnapshot:
    """Roll back automatically to this target, which has answered a probe, and pause automatic promotion.

    Returns the agent; unchanged if its policy no longer asks for the rollback, or `probed` is no longer a target.
    Others see the effect once the transaction is committed.
    """
    before = await lock_state(session, agent_id)
    if not _must_roll_back(before, failed_id):
        return before
    targets = await rollback_targets(session, agent_id, limit=ALTERNATIVES)
    target = next((target for target in targets if target.matches(probed)), None)
    if target is None:
        return before
    caller = Caller(actor=AUTOMATION, reason=f"Deployment {failed_id} is Failed: {before.agent.status_reason}")
    before, state = await _restore(session, before, target, caller)
    after = replace(state, agent=replace(state.agent, auto_promote_paused=True))
    await save_state(session, before, after)
    return after


def _must_roll_back(state: AgentSnapshot, failed_id: str) -> bool:
    production = state.production
    if production is None or production.id != failed_id or production.status != "Failed":
        return False
    return state.agent.on_failure == "rollback"


async def _locked(session: AsyncSession, agent_id: UUID, to: str | None) -> AgentSnapshot:
    return await lock_state(session, agent_id, *(() if to is None or to == LEGACY else (to,)))


async def _target(session: AsyncSession, before: AgentSnapshot, to: str | None, caller: Caller) -> Target | None:
    """The target; None if it serves already. Raises the reason if there is none or it cannot serve."""
    if to is None:
        return await _what_served_before(session, before, caller)
    if to == LEGACY:
        return await _legacy_address(session, before, caller)
    return await _named(session, before, to, caller)


async def _what_served_before(session: AsyncSession, before: AgentSnapshot, caller: Caller) -> Target:
    _require_not_deleted(before)
    require_generation(before, caller.if_generation)
    targets = await rollback_targets(session, before.agent.id, limit=1)
    if not targets:
        raise NothingToRollBackTo
    return targets[0]


async def _legacy_address(session: AsyncSession, before: AgentSnapshot, caller: Caller) -> Target | None:
    agent = before.agent
    _require_not_deleted(before)
    if agent.legacy_acp_url is not None and before.production is None:
        return None
    require_generation(before, caller.if_generation)
    if agent.legacy_acp_url is None:
        raise NothingToRollBackTo("This agent has no legacy address: name a deployment instead.")
    return Target(
        deployment_id=None,
        acp_url=agent.legacy_acp_url,
        health_path=agent.legacy_health_path,
        registered_at=agent.registered_at,
        restored=await last_served(session, agent.id, None),
    )


async def _named(session: AsyncSession, before: AgentSnapshot, to: str, caller: Caller) -> Target | None:
    deployment = own_deployment(before, to)
    if deployment.is_production:
        return None
    require_ready(before, deployment, caller)
    return Target(
        deployment_id=deployment.id,
        acp_url=deployment.acp_url or "",
        health_path=deployment.health_path,
        registered_at=deployment.registered_at,
        restored=await last_served(session, before.agent.id, deployment.id),
    )


async def _restore(
    session: AsyncSession, before: AgentSnapshot, target: Target | None, caller: Caller
) -> tuple[AgentSnapshot, AgentSnapshot]:
    """The state before, with the target loaded, and the state after the rollback."""
    if target is None:
        return before, before
    if target.deployment_id is not None and target.deployment_id not in before.deployments:
        loaded = await load_deployments(session, [target.deployment_id])
        before = replace(before, deployments={**before.deployments, **loaded})
    state = caller.decides(before)
    restored = cutover(
        state,
        target.deployment_id,
        cause="rollback",
        actor=caller.actor,
        reason=caller.reason,
        restored=target.restored,
    )
    return before, restored


def _require_not_deleted(state: AgentSnapshot) -> None:
    if state.agent.deleted_at is not None:
        raise AgentDeletedError
