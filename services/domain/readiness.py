"""What becomes of a deployment that can be reached: the world is told, and its first time may put it in production."""

from dataclasses import replace

from contracts.events import DeploymentReady
from contracts.fields import Cause
from services.domain.cutover import cutover
from services.domain.state import AgentSnapshot, DeploymentState, emit, serving, status_of_agent

AUTOMATION = "podium"


def announce_ready(state: AgentSnapshot, deployment: DeploymentState) -> AgentSnapshot:
    """The state in which the world knows that this deployment, as `state` has it, is Ready at its address."""
    status, reason = status_of_agent(state)
    state = replace(state, agent=replace(state.agent, status=status, status_reason=reason))
    ready = DeploymentReady(
        agent_id=str(state.agent.id),
        agent_name=state.agent.name,
        deployment_id=deployment.id,
        docker_image=deployment.docker_image,
        acp_url=deployment.acp_url or "",
        rpc_path=deployment.rpc_path,
        is_production=deployment.is_production,
    )
    return emit(state, ready, subject=deployment.id)


def promote_first_time(state: AgentSnapshot, candidate: DeploymentState) -> AgentSnapshot:
    """The state with this deployment, Ready for the first time, in production if the agent's policy says so."""
    cause = should_auto_promote(state, candidate)
    return state if cause is None else cutover(state, candidate.id, cause=cause, actor=AUTOMATION)


def should_auto_promote(state: AgentSnapshot, candidate: DeploymentState) -> Cause | None:
    """The cause under which a deployment that is Ready for the first time goes to production, if it does."""
    agent, production, published = state.agent, state.production, candidate.first_registered_at
    if agent.auto_promote_paused or published is None:
        return None
    if agent.auto_promote == "first":
        return "first" if serving(state) is None else None
    if agent.auto_promote == "always":
        rivals = (production.first_registered_at if production else None, agent.promote_requested_at)
        return "always" if all(rival is None or published > rival for rival in rivals) else None
    return None
