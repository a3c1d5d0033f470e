"""Readiness: deployments that become Ready or Failed, with their events, and automatic promotion the first time."""

from msgspec.structs import replace

from contracts.events import DeploymentFailed, DeploymentReady
from contracts.fields import Cause
from services.domain.cutover import cutover
from services.domain.state import AgentSnapshot, DeploymentState, emit, serving, status_of_agent

AUTOMATION = "podium"
UNPROVEN = "its pod has registered but has not answered a probe yet"


def set_ready(state: AgentSnapshot, deployment: DeploymentState) -> AgentSnapshot:
    """Set this deployment Ready; the first time, put it into production if the agent's policy says so."""
    ready = replace(
        deployment,
        status="Ready",
        status_reason=None,
        status_changed_at=state.now,
        probe_streak=0,
        ready_at=deployment.ready_at or state.now,
    )
    state = announce_ready(state.with_deployment(ready), ready)
    return state if deployment.ready_at is not None else promote_first_time(state, ready)


def set_failed(state: AgentSnapshot, deployment: DeploymentState, reason: str) -> AgentSnapshot:
    """Set this deployment Failed. If it is in production, it stays in production and the agent is Failed too."""
    failed = replace(deployment, status="Failed", status_reason=reason, status_changed_at=state.now)
    state = state.with_deployment(failed)
    status, status_reason = status_of_agent(state)
    state = replace(state, agent=replace(state.agent, status=status, status_reason=status_reason))
    event = DeploymentFailed(
        agent_id=str(state.agent.id),
        agent_name=state.agent.name,
        deployment_id=failed.id,
        reason=reason,
        is_production=failed.is_production,
    )
    return emit(state, event, subject=failed.id)


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
