"""Readiness: the event of a deployment that is Ready, and automatic promotion when it is so for the first time."""

from dataclasses import replace

from contracts.events import DeploymentReady
from contracts.fields import Cause
from services.domain.cutover import cutover
from services.domain.state import AgentSnapshot, DeploymentState, emit, serving, status_of_agent

AUTOMATION = "podium"


def announce_ready(state: AgentSnapshot, deployment: DeploymentState) -> AgentSnapshot:
    """Emit `deployment.ready` for this deployment, which is Ready in `state`, and update the agent's status."""
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
    """Put this deployment, Ready for the first time, into production if the agent's policy says so."""
    cause = should_auto_promote(state, candidate)
    return state if cause is None else cutover(state, candidate.id, cause=cause, actor=AUTOMATION)


def should_auto_promote(state: AgentSnapshot, candidate: DeploymentState) -> Cause | None:
    """The cause if this deployment, Ready for the first time, is promoted automatically; else None."""
    agent, production, published_at = state.agent, state.production, candidate.first_registered_at
    if agent.auto_promote_paused or published_at is None:
        return None
    if agent.auto_promote == "first":
        return "first" if serving(state) is None else None
    if agent.auto_promote == "always":
        earlier = (production.first_registered_at if production else None, agent.promote_requested_at)
        return "always" if all(time is None or published_at > time for time in earlier) else None
    return None
