"""Promote and roll back: the agent row is locked first, what decides is read after it, so each call has its turn."""

from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.cutover import cutover
from services.errors import (
    AgentDeletedError,
    DeploymentDeletedError,
    DeploymentNotFound,
    DeploymentNotReady,
    GenerationMismatch,
    NothingToRollBackTo,
)
from services.ledger import last_served, rollback_target
from services.state import DeploymentState, State
from services.store import load_deployments, lock_state, save_state

LEGACY = "legacy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks for a change of what serves, why, and at which generation (None: whichever it is)."""

    actor: str
    reason: str | None = None
    if_generation: int | None = None
    traceparent: str | None = None


async def promote(session: AsyncSession, agent_id: UUID, deployment_id: str, caller: Caller) -> State:
    """The agent with this deployment in production; others see it once the transaction is committed.

    Unchanged, at the same generation, if it is in production already. Ends a pause of automatic promotion.
    Raises, in this order: `AgentNotFound`, `DeploymentNotFound`, `AgentDeletedError`, `DeploymentDeletedError`,
    `GenerationMismatch`, `DeploymentNotReady`; `Busy` when others hold the agent for too long.
    """
    before = await lock_state(session, agent_id, deployment_id)
    state = replace(before, traceparent=caller.traceparent)
    target = own_deployment(state, deployment_id)
    requested_at = state.now
    if not target.is_production:
        _check(state, target, caller)
        state = cutover(state, target.id, cause="manual", actor=caller.actor, reason=caller.reason)
        requested_at = state.last_cutover_at or requested_at
    agent = replace(state.agent, auto_promote_paused=False, promote_requested_at=requested_at)
    after = replace(state, agent=agent)
    await save_state(session, before, after)
    return after


async def roll_back(session: AsyncSession, agent_id: UUID, caller: Caller, *, to: str | None = None) -> State:
    """The agent serving what served before, or `to`: a deployment id or `legacy`. Pauses automatic promotion.

    Rolling back twice goes back twice. Raises as `promote` does, and `NothingToRollBackTo`; others see the effect
    once the transaction is committed.
    """
    named = () if to is None or to == LEGACY else (to,)
    before = await lock_state(session, agent_id, *named)
    if to is None:
        before, state = await _back(session, before, caller)
    elif to == LEGACY:
        state = await _back_to_legacy(session, before, caller)
    else:
        state = await _back_to(session, before, to, caller)
    after = replace(state, agent=replace(state.agent, auto_promote_paused=True))
    await save_state(session, before, after)
    return after


def own_deployment(state: State, deployment_id: str) -> DeploymentState:
    """The agent's deployment of this id; raises 404, then 410."""
    deployment = state.deployments.get(deployment_id)
    if deployment is None or deployment.agent_id != state.agent.id:
        raise DeploymentNotFound
    if state.agent.deleted_at is not None:
        raise AgentDeletedError
    if deployment.expires_at is not None:
        raise DeploymentDeletedError
    return deployment


async def _back(session: AsyncSession, before: State, caller: Caller) -> tuple[State, State]:
    """To what served before; the state before includes the target, which nobody named."""
    _check_living(before)
    _check_generation(before, caller)
    target = await rollback_target(session, before.agent.id)
    if target is None:
        raise NothingToRollBackTo
    if target.deployment_id is not None:
        loaded = await load_deployments(session, [target.deployment_id])
        before = replace(before, deployments={**before.deployments, **loaded})
    return before, _restore(before, target.deployment_id, target.restored, caller)


async def _back_to_legacy(session: AsyncSession, before: State, caller: Caller) -> State:
    _check_living(before)
    has_address = before.agent.legacy_acp_url is not None
    if has_address and before.production is None:
        return before
    _check_generation(before, caller)
    if not has_address:
        raise NothingToRollBackTo("This agent has no legacy address: name a deployment to go back to.")
    restored = await last_served(session, before.agent.id, None)
    return _restore(before, None, restored, caller)


async def _back_to(session: AsyncSession, before: State, to: str, caller: Caller) -> State:
    target = own_deployment(before, to)
    if target.is_production:
        return before
    _check(before, target, caller)
    restored = await last_served(session, before.agent.id, target.id)
    return _restore(before, target.id, restored, caller)


def _restore(state: State, to: str | None, restored: int | None, caller: Caller) -> State:
    state = replace(state, traceparent=caller.traceparent)
    return cutover(state, to, cause="rollback", actor=caller.actor, reason=caller.reason, restored=restored)


def _check(state: State, target: DeploymentState, caller: Caller) -> None:
    _check_generation(state, caller)
    if target.status != "Ready":
        because = f": {target.status_reason}" if target.status_reason else ""
        raise DeploymentNotReady(
            f"Deployment {target.id} is {target.status}{because}. Wait until its pod has registered, then try again."
        )


def _check_generation(state: State, caller: Caller) -> None:
    if caller.if_generation is not None and caller.if_generation != state.agent.generation:
        raise GenerationMismatch(
            f"The agent is at generation {state.agent.generation}, not {caller.if_generation}: "
            "read it again, then decide."
        )


def _check_living(state: State) -> None:
    if state.agent.deleted_at is not None:
        raise AgentDeletedError
