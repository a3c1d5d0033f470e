"""Rollback: to what served before, to a named target, or automatically away from a failed deployment.

The target is probed between two transactions, without a lock: the first one plans the rollback, and the second one
makes it only if the target is still the one that was probed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from msgspec.structs import replace
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
    """What a rollback would go to now; `target` is None if it serves already."""

    agent: AgentState
    target: Target | None


@dataclass(frozen=True, slots=True)
class Past:
    """What the ledger says: the newest thing that can serve again, and when a named target last began to serve."""

    newest: Target | None = None
    """Read only if no target is named."""
    restored: int | None = None
    """The generation that last put the named target into service; None if it never served, or none is named."""


async def plan_rollback(session: AsyncSession, agent_id: UUID, caller: Caller, *, to: str | None = None) -> Plan:
    """What `roll_back` would do now; changes nothing. Raises the same errors."""
    before, past = await _locked(session, agent_id, to)
    return planned(before, to, caller, past)


async def roll_back(
    session: AsyncSession,
    agent_id: UUID,
    caller: Caller,
    *,
    to: str | None = None,
    probed: Sequence[Target] | None = None,
) -> AgentSnapshot:
    """Go back to what served before, or to `to`: a deployment id or `legacy`. Pauses automatic promotion.

    Returns the agent. Rolling back twice goes back twice. Raises the errors of `promote`, `NothingToRollBackTo`, and
    `TargetMoved` if the target is none of the `probed` ones (None allows any). Others see the effect once the
    transaction is committed.
    """
    before, past = await _locked(session, agent_id, to)
    after = rolled_back(before, to, caller, past, probed)
    await save_state(session, before, after)
    return after


def planned(state: AgentSnapshot, to: str | None, caller: Caller, past: Past) -> Plan:
    """The plan for this state: the decision alone. Raises the errors of `roll_back`."""
    return Plan(state.agent, _target(state, to, caller, past))


def rolled_back(
    state: AgentSnapshot, to: str | None, caller: Caller, past: Past, probed: Sequence[Target] | None
) -> AgentSnapshot:
    """The state after `roll_back`: the decision alone. Raises its errors."""
    target = _target(state, to, caller, past)
    if target is not None:
        if probed is not None and not any(target.matches(each) for each in probed):
            raise TargetMoved
        state = _restored(state, target, caller)
    return _paused(state)


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
    before = await _with_deployment(session, before, target)
    after = _paused(_restored(before, target, caller))
    await save_state(session, before, after)
    return after


def _must_roll_back(state: AgentSnapshot, failed_id: str) -> bool:
    production = state.production
    if production is None or production.id != failed_id or production.status != "Failed":
        return False
    return state.agent.on_failure == "rollback"


async def _locked(session: AsyncSession, agent_id: UUID, to: str | None) -> tuple[AgentSnapshot, Past]:
    """The agent, locked, with its target, and what the ledger says of it."""
    named = None if to == LEGACY else to
    state = await lock_state(session, agent_id, *([] if named is None else [named]))
    if to is not None:
        return state, Past(restored=await last_served(session, agent_id, named))
    targets = await rollback_targets(session, agent_id, limit=1)
    if not targets:
        return state, Past()
    return await _with_deployment(session, state, targets[0]), Past(newest=targets[0])


async def _with_deployment(session: AsyncSession, state: AgentSnapshot, target: Target) -> AgentSnapshot:
    """The state with the deployment that is the target."""
    if target.deployment_id is None or target.deployment_id in state.deployments:
        return state
    loaded = await load_deployments(session, [target.deployment_id])
    return replace(state, deployments={**state.deployments, **loaded})


def _target(state: AgentSnapshot, to: str | None, caller: Caller, past: Past) -> Target | None:
    """The target; None if it serves already. Raises the reason if there is none or it cannot serve."""
    if to is None:
        return _what_served_before(state, caller, past)
    if to == LEGACY:
        return _legacy_address(state, caller, past)
    return _named(state, to, caller, past)


def _what_served_before(state: AgentSnapshot, caller: Caller, past: Past) -> Target:
    _require_not_deleted(state)
    require_generation(state, caller.if_generation)
    if past.newest is None:
        raise NothingToRollBackTo
    return past.newest


def _legacy_address(state: AgentSnapshot, caller: Caller, past: Past) -> Target | None:
    agent = state.agent
    _require_not_deleted(state)
    if agent.legacy_acp_url is not None and state.production is None:
        return None
    require_generation(state, caller.if_generation)
    if agent.legacy_acp_url is None:
        raise NothingToRollBackTo("This agent has no legacy address: name a deployment instead.")
    return Target.legacy(agent, past.restored)


def _named(state: AgentSnapshot, to: str, caller: Caller, past: Past) -> Target | None:
    deployment = own_deployment(state, to)
    if deployment.is_production:
        return None
    require_ready(state, deployment, caller)
    return Target.of(deployment, past.restored)


def _restored(state: AgentSnapshot, target: Target, caller: Caller) -> AgentSnapshot:
    return cutover(
        caller.decides(state),
        target.deployment_id,
        cause="rollback",
        actor=caller.actor,
        reason=caller.reason,
        restored=target.restored,
    )


def _paused(state: AgentSnapshot) -> AgentSnapshot:
    return replace(state, agent=replace(state.agent, auto_promote_paused=True))


def _require_not_deleted(state: AgentSnapshot) -> None:
    if state.agent.deleted_at is not None:
        raise AgentDeletedError
