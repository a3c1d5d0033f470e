"""Registration policy: the effect of an announcement on an agent and its deployments, as pure functions.

`decide` is deterministic: the same messages in the same order give the same rows, ledger and events.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from contracts.events import AgentRegistered, DeploymentCreated
from contracts.fields import DEFAULT_HEALTH_PATH, DEFAULT_RPC_PATH
from contracts.messages import RegisterAgentRequest, RegisterBuildRequest, RegistrationMetadata
from services.domain.announcement import Announcement, Duplicate, Outcome, Registered, Rejected, Shadowed, Stale
from services.domain.cutover import cutover
from services.domain.readiness import announce_ready, promote_first_time
from services.domain.state import AgentSnapshot, AgentState, DeploymentState, Precedence, emit, serving
from services.errors import (
    AgentIdMismatch,
    DeploymentDeletedError,
    DeploymentOfAnotherAgent,
    ImageConflict,
    PodiumError,
)

# How far a pod's clock may be ahead. Beyond that, the message gets the database's time.
CLOCK_TOLERANCE = timedelta(seconds=30)

POD = "pod"
UNPROVEN = "its pod has registered but has not answered a probe yet"


def effective_time(registered_at: datetime | None, now: datetime) -> datetime:
    """The publication time of a message; the database's time if the pod sent none, or one too far in the future."""
    return now if registered_at is None or registered_at > now + CLOCK_TOLERANCE else registered_at


def decide(state: AgentSnapshot, announcement: Announcement, *, known: bool = False) -> tuple[AgentSnapshot, Outcome]:
    """Apply a message; returns the next state and the outcome. `known`: the message id was decided before."""
    if known:
        return state, Duplicate()
    request = announcement.request
    at = effective_time(announcement.registered_at, state.now)
    if state.name_deleted_at is not None and at < state.name_deleted_at:
        return state, Stale()
    if isinstance(request, RegisterBuildRequest):
        return _build(state, request), Registered()
    if request.agent_id is not None and request.agent_id != str(state.agent.id):
        return state, Rejected(AgentIdMismatch())
    precedence = (at, announcement.message_id)
    metadata = request.registration_metadata or RegistrationMetadata()
    if metadata.deployment_id is None:
        return _legacy(state, request, metadata, precedence)
    return _deployment(state, request, metadata, precedence)


def refusal(agent: AgentState, stored: DeploymentState | None, image: str | None) -> PodiumError | None:
    """The error if `agent` cannot use the id of `stored` with this image; None if it can. `image` None matches any."""
    if stored is None:
        return None
    if stored.agent_id != agent.id:
        # Names are unique among agents that are not deleted, so an owner of the same name is an earlier, deleted agent.
        return DeploymentDeletedError() if stored.agent_name == agent.name else DeploymentOfAnotherAgent()
    if stored.expires_at is not None:
        return DeploymentDeletedError()
    if image is not None and stored.docker_image is not None and image != stored.docker_image:
        return ImageConflict()
    return None


def _build(state: AgentSnapshot, request: RegisterBuildRequest) -> AgentSnapshot:
    agent = state.agent
    described = replace(
        _described(agent, request),
        docker_image=request.docker_image or agent.docker_image,
        registration_metadata=_merged(agent.registration_metadata, request.registration_metadata),
    )
    return _announce_agent(state, described)


def _legacy(
    state: AgentSnapshot, request: RegisterAgentRequest, metadata: RegistrationMetadata, precedence: Precedence
) -> tuple[AgentSnapshot, Outcome]:
    agent, production = state.agent, state.production
    if agent.newest is not None and precedence <= agent.newest:
        return state, Stale()
    announced = replace(
        _described(agent, request),
        docker_image=metadata.docker_image or agent.docker_image,
        registration_metadata=_merged(agent.registration_metadata, metadata.facts()),
        legacy_acp_url=request.acp_url,
        legacy_rpc_path=metadata.rpc_path or DEFAULT_RPC_PATH,
        legacy_health_path=metadata.health_path or DEFAULT_HEALTH_PATH,
        legacy_error_style=metadata.error_style or "http",
    )
    new_address = request.acp_url != agent.legacy_acp_url
    if production is not None:
        published_later = production.promoted_at is None or precedence[0] > production.promoted_at
        takes_over = published_later and (new_address or production.status != "Ready")
    else:
        takes_over = new_address
    if takes_over:
        state = cutover(state, None, cause="legacy", actor=POD, agent=announced)
        # If no deployment was in production, the cutover emitted no event for this generation.
        state = _announce_agent(state, state.agent, changed=production is None or _differs(agent, state.agent))
    else:
        state = _announce_agent(state, announced)
    state = replace(state, agent=replace(state.agent, registered_at=precedence[0], registered_message_id=precedence[1]))
    return state, Shadowed() if production is not None and not takes_over else Registered()


def _deployment(
    state: AgentSnapshot, request: RegisterAgentRequest, metadata: RegistrationMetadata, precedence: Precedence
) -> tuple[AgentSnapshot, Outcome]:
    agent = state.agent
    deployment_id = metadata.deployment_id or ""
    stored = state.deployments.get(deployment_id)
    error = refusal(agent, stored, metadata.docker_image)
    if error is not None:
        return state, Rejected(error)
    if stored is not None and stored.newest is not None and precedence <= stored.newest:
        return state, Stale()
    if agent.event_seq == 0:
        state = _announce_agent(state, _described(agent, request))
    announced = _announced(state, stored, request, metadata, precedence)
    state = state.with_deployment(announced)
    if stored is None:
        created = DeploymentCreated(
            agent_id=str(agent.id),
            agent_name=agent.name,
            deployment_id=announced.id,
            docker_image=announced.docker_image,
        )
        state = emit(state, created, subject=announced.id)
    state = _announce_ready(state, stored, announced)
    if announced.ready_at is not None and (stored is None or stored.ready_at is None):
        state = promote_first_time(state, announced)
    return state, Registered()


def _announced(
    state: AgentSnapshot,
    stored: DeploymentState | None,
    request: RegisterAgentRequest,
    metadata: RegistrationMetadata,
    precedence: Precedence,
) -> DeploymentState:
    """The deployment after this announcement."""
    now = state.now
    base = stored or DeploymentState(
        id=metadata.deployment_id or "",
        agent_id=state.agent.id,
        agent_name=state.agent.name,
        status="Pending",
        status_changed_at=now,
        created_at=now,
    )
    announced = replace(
        base,
        docker_image=base.docker_image or metadata.docker_image or state.agent.docker_image,
        registration_metadata=_merged(base.registration_metadata, metadata.facts()),
        acp_url=request.acp_url,
        rpc_path=metadata.rpc_path or DEFAULT_RPC_PATH,
        health_path=metadata.health_path or DEFAULT_HEALTH_PATH,
        error_style=metadata.error_style or "http",
        registered_at=precedence[0],
        registered_message_id=precedence[1],
    )
    if (base.acp_url, base.health_path) != (announced.acp_url, announced.health_path):
        announced = replace(announced, probe_streak=0)
    if base.status == "Ready" or (base.status == "Failed" and precedence[0] <= base.status_changed_at):
        return announced
    announced = replace(announced, probe_streak=0, first_registered_at=base.first_registered_at or precedence[0])
    if state.ready_requires_probe:
        return _unproven(base, announced, now)
    return replace(announced, status="Ready", status_reason=None, status_changed_at=now, ready_at=base.ready_at or now)


def _unproven(before: DeploymentState, announced: DeploymentState, now: datetime) -> DeploymentState:
    """The deployment, waiting for an answered probe: as Pending, or as Failed if it was Ready before."""
    if announced.ready_at is not None or (before.status == "Pending" and before.acp_url is not None):
        return announced
    return replace(announced, status="Pending", status_reason=UNPROVEN, status_changed_at=now)


def _announce_ready(state: AgentSnapshot, stored: DeploymentState | None, announced: DeploymentState) -> AgentSnapshot:
    if announced.status != "Ready" or announced.acp_url is None:
        return state
    became_ready = stored is None or stored.status != "Ready"
    moved = stored is not None and (stored.acp_url, stored.rpc_path) != (announced.acp_url, announced.rpc_path)
    if not (became_ready or (announced.is_production and moved)):
        return state
    return announce_ready(state, announced)


def _described(agent: AgentState, request: RegisterAgentRequest | RegisterBuildRequest) -> AgentState:
    """The agent with the fields that the message sets; other fields stay."""
    return replace(
        agent,
        description=agent.description if request.description is None else request.description,
        acp_type=request.acp_type or agent.acp_type,
        agent_input_type=request.agent_input_type or agent.agent_input_type,
    )


def _announce_agent(state: AgentSnapshot, agent: AgentState, *, changed: bool | None = None) -> AgentSnapshot:
    """Store this agent row; emit `agent.registered` if it `changed` (None: compare the self-descriptions)."""
    if changed is None:
        changed = state.agent.event_seq == 0 or _differs(state.agent, agent)
    if not changed:
        return replace(state, agent=agent)
    state = replace(state, agent=replace(agent, updated_at=state.now))
    now_serving = serving(state)
    data = AgentRegistered(
        agent_id=str(agent.id),
        agent_name=agent.name,
        description=agent.description,
        acp_type=agent.acp_type,
        acp_url=now_serving.acp_url if now_serving else None,
    )
    return emit(state, data)


def _differs(before: AgentState, after: AgentState) -> bool:
    """Whether the agents' self-descriptions differ; what serves them and their counters are not compared."""
    return _self_description(before) != _self_description(after)


def _self_description(agent: AgentState) -> tuple[object, ...]:
    return (
        agent.description,
        agent.docker_image,
        agent.acp_type,
        agent.agent_input_type,
        agent.registration_metadata,
        agent.legacy_acp_url,
        agent.legacy_rpc_path,
        agent.legacy_health_path,
        agent.legacy_error_style,
    )


def _merged(stored: dict[str, Any] | None, announced: dict[str, Any] | None) -> dict[str, Any] | None:
    """The stored facts, updated with the announced ones."""
    if not announced:
        return stored
    return {**stored, **announced} if stored else announced
