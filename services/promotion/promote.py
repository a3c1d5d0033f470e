"""Promote. The agent row is locked first and the state is read after that, so concurrent calls run one by one."""

from uuid import UUID

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.caller import Caller
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


async def promote(session: AsyncSession, agent_id: UUID, deployment_id: str, caller: Caller) -> AgentSnapshot:
    """Put this deployment into production; returns the agent. Others see it once the transaction is committed.

    If it is in production already, the generation stays. Ends a pause of automatic promotion.
    Raises, in this order: `AgentNotFound`, `DeploymentNotFound`, `AgentDeletedError`, `DeploymentDeletedError`,
    `GenerationMismatch`, `DeploymentNotReady`; `Busy` if the agent's lock is not free in time.
    """
    before = await lock_state(session, agent_id, deployment_id)
    after = promoted(before, deployment_id, caller)
    await save_state(session, before, after)
    return after


def promoted(state: AgentSnapshot, deployment_id: str, caller: Caller) -> AgentSnapshot:
    """The state after `promote`: the decision alone. Raises its errors."""
    state = caller.decides(state)
    target = own_deployment(state, deployment_id)
    if not target.is_production:
        require_ready(state, target, caller)
        state = cutover(state, target.id, cause="manual", actor=caller.actor, reason=caller.reason)
    requested_at = max(state.now, state.last_cutover_at or state.now)
    agent = replace(state.agent, auto_promote_paused=False, promote_requested_at=requested_at)
    return replace(state, agent=agent)


def own_deployment(state: AgentSnapshot, deployment_id: str) -> DeploymentState:
    """The agent's deployment with this id; raises 404, then 410."""
    deployment = state.deployments.get(deployment_id)
    if deployment is None or deployment.agent_id != state.agent.id:
        raise DeploymentNotFound
    if state.agent.deleted_at is not None:
        raise AgentDeletedError
    if deployment.expires_at is not None:
        raise DeploymentDeletedError
    return deployment


def require_ready(state: AgentSnapshot, target: DeploymentState, caller: Caller) -> None:
    """Raise 412 if the generation differs from the required one, then 409 if the deployment is not Ready."""
    require_generation(state, caller.if_generation)
    if target.status != "Ready":
        reason = f": {target.status_reason}" if target.status_reason else ""
        raise DeploymentNotReady(
            f"Deployment {target.id} is {target.status}{reason}. Wait until it is Ready, then try again."
        )


def require_generation(state: AgentSnapshot, if_generation: int | None) -> None:
    """Raise 412 if the agent is at another generation; None allows any."""
    if if_generation is not None and if_generation != state.agent.generation:
        raise GenerationMismatch(
            f"The agent is at generation {state.agent.generation}, not {if_generation}: read it again, then decide."
        )
