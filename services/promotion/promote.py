"""Promote: the agent row is locked first, what decides is read after it, so each call has its turn."""

from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.cutover import cutover
from services.domain.state import AgentSnapshot, DeploymentState
from services.errors import (
    AgentDeletedError,
    DeploymentDeletedError,
    DeploymentNotFound,
    DeploymentNotReady,
    GenerationMismatch,
)
from services.storage.store import lock_state, save_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks for a change of what serves, why, and at which generation (None: whichever it is)."""

    actor: str
    reason: str | None = None
    if_generation: int | None = None
    traceparent: str | None = None


async def promote(session: AsyncSession, agent_id: UUID, deployment_id: str, caller: Caller) -> AgentSnapshot:
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
        require_ready(state, target, caller)
        state = cutover(state, target.id, cause="manual", actor=caller.actor, reason=caller.reason)
        requested_at = state.last_cutover_at or requested_at
    agent = replace(state.agent, auto_promote_paused=False, promote_requested_at=requested_at)
    after = replace(state, agent=agent)
    await save_state(session, before, after)
    return after


def own_deployment(state: AgentSnapshot, deployment_id: str) -> DeploymentState:
    """The agent's deployment of this id; raises 404, then 410."""
    deployment = state.deployments.get(deployment_id)
    if deployment is None or deployment.agent_id != state.agent.id:
        raise DeploymentNotFound
    if state.agent.deleted_at is not None:
        raise AgentDeletedError
    if deployment.expires_at is not None:
        raise DeploymentDeletedError
    return deployment


def require_ready(state: AgentSnapshot, target: DeploymentState, caller: Caller) -> None:
    """Raise 412, then 409, if this deployment cannot go to production as the caller wants it."""
    require_generation(state, caller)
    if target.status != "Ready":
        because = f": {target.status_reason}" if target.status_reason else ""
        raise DeploymentNotReady(
            f"Deployment {target.id} is {target.status}{because}. Wait until its pod has registered, then try again."
        )


def require_generation(state: AgentSnapshot, caller: Caller) -> None:
    """Raise 412 if the agent is not at the generation at which the caller looked."""
    if caller.if_generation is not None and caller.if_generation != state.agent.generation:
        raise GenerationMismatch(
            f"The agent is at generation {state.agent.generation}, not {caller.if_generation}: "
            "read it again, then decide."
        )
