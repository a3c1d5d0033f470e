"""Registration policy: the effect of an announcement on an agent and its deployments, as pure functions.

`decide` is deterministic: the same messages in the same order give the same rows, ledger and events.
"""

from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from contracts.events import AgentRegistered, DeploymentCreated
from contracts.fields import DEFAULT_HEALTH_PATH, DEFAULT_RPC_PATH
from contracts.messages import (
    DeregisterInstanceRequest,
    RegisterAgentRequest,
    RegisterBuildRequest,
    RegistrationMetadata,
)
from services.domain.announcement import (
    Announcement,
    Departed,
    Duplicate,
    Outcome,
    Registered,
    Rejected,
    Shadowed,
    Stale,
)
from services.domain.cutover import cutover
from services.domain.instances import (
    GOODBYE,
    announce_instance,
    at_address_of,
    departed,
    remove_instance,
    settle,
    with_unnamed,
)
from services.domain.readiness import UNPROVEN, announce_ready, promote_first_time
from services.domain.state import (
    AgentSnapshot,
    AgentState,
    DeploymentState,
    InstanceState,
    Precedence,
    emit,
    serving,
)
from services.errors import (
    AgentIdMismatch,
    DeploymentDeletedError,
    DeploymentOfAnotherAgent,
    ImageConflict,
    PodiumError,
    TooManyInstances,
)

# How far a pod's clock may be ahead. Beyond that, the message gets the database's time.
CLOCK_TOLERANCE = timedelta(seconds=30)

POD = "pod"


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
    precedence = (at, announcement.message_id)
    if isinstance(request, DeregisterInstanceRequest):
        return _goodbye(state, request, precedence)
    return _registration(state, request, precedence)


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


def _registration(
    state: AgentSnapshot, request: RegisterAgentRequest, precedence: Precedence
) -> tuple[AgentSnapshot, Outcome]:
    if request.agent_id is not None and request.agent_id != str(state.agent.id):
        return state, Rejected(AgentIdMismatch())
    metadata = request.registration_metadata or RegistrationMetadata()
    if metadata.deployment_id is None:
        return _legacy(state, request, metadata, precedence)
    return _deployment(state, request, metadata, precedence)


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
    if metadata.instance_id is not None or (stored is not None and stored.has_instances):
        return _instance(state, request, metadata, precedence)
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


def _instance(
    state: AgentSnapshot, request: RegisterAgentRequest, metadata: RegistrationMetadata, precedence: Precedence
) -> tuple[AgentSnapshot, Outcome]:
    """The announcement of one of several pods; of the one with the empty id if it names none."""
    agent = state.agent
    deployment_id, instance_id = metadata.deployment_id or "", metadata.instance_id or ""
    stored = state.deployments.get(deployment_id)
    named = with_unnamed(state, stored) if stored is not None and not stored.has_instances else state
    own = named.instances.get(deployment_id, {})
    before = own.get(instance_id)
    newest = before.newest if before is not None else state.departed.get((deployment_id, instance_id))
    if newest is not None and precedence <= newest:
        return state, Stale()
    if before is None and len(own) >= state.instances_max:
        return state, Rejected(TooManyInstances())
    state = named
    if agent.event_seq == 0:
        state = _announce_agent(state, _described(agent, request))
    version = _version(state, stored, metadata, precedence)
    instance = _announced_instance(state, before, request, metadata, precedence)
    if version.acp_url is None:
        version = at_address_of(version, instance)
    if version.status == "Pending":
        version = replace(version, status_reason=UNPROVEN)
    state = state.with_deployment(version).with_instance(instance)
    if stored is None:
        created = DeploymentCreated(
            agent_id=str(agent.id),
            agent_name=agent.name,
            deployment_id=deployment_id,
            docker_image=version.docker_image,
        )
        state = emit(state, created, subject=deployment_id)
    state = announce_instance(state, before, instance)
    return settle(state, deployment_id, UNPROVEN), Registered()


def _version(
    state: AgentSnapshot, stored: DeploymentState | None, metadata: RegistrationMetadata, precedence: Precedence
) -> DeploymentState:
    """The deployment with what the announcement of one of its instances says about the version."""
    base = stored or _new_deployment(state, metadata)
    is_newest = base.newest is None or precedence > base.newest
    facts = metadata.facts()
    older, newer = (base.registration_metadata, facts) if is_newest else (facts, base.registration_metadata)
    changed = replace(
        base,
        has_instances=True,
        docker_image=base.docker_image or metadata.docker_image or state.agent.docker_image,
        registration_metadata=_merged(older, newer),
        first_registered_at=base.first_registered_at or precedence[0],
    )
    if not is_newest:
        return changed
    error_style = metadata.error_style or "http"
    return replace(changed, error_style=error_style, registered_at=precedence[0], registered_message_id=precedence[1])


def _announced_instance(
    state: AgentSnapshot,
    before: InstanceState | None,
    request: RegisterAgentRequest,
    metadata: RegistrationMetadata,
    precedence: Precedence,
) -> InstanceState:
    """The instance after this announcement."""
    now = state.now
    announced = InstanceState(
        deployment_id=metadata.deployment_id or "",
        instance_id=metadata.instance_id or "",
        agent_id=state.agent.id,
        acp_url=request.acp_url,
        rpc_path=metadata.rpc_path or DEFAULT_RPC_PATH,
        health_path=metadata.health_path or DEFAULT_HEALTH_PATH,
        status="Pending",
        status_reason=UNPROVEN,
        status_changed_at=now,
        registered_at=precedence[0],
        registered_message_id=precedence[1],
        created_at=now,
    )
    if before is not None:
        moved = (before.acp_url, before.health_path) != (announced.acp_url, announced.health_path)
        announced = replace(
            announced,
            status=before.status,
            status_reason=before.status_reason,
            status_changed_at=before.status_changed_at,
            created_at=before.created_at,
            ready_at=before.ready_at,
            probe_streak=0 if moved else before.probe_streak,
        )
        if before.status == "Ready" or (before.status == "Failed" and precedence[0] <= before.status_changed_at):
            return announced
        announced = replace(announced, probe_streak=0)
    if state.ready_requires_probe:
        if announced.ready_at is not None or announced.status == "Pending":
            return announced
        return replace(announced, status="Pending", status_reason=UNPROVEN, status_changed_at=now)
    return replace(
        announced, status="Ready", status_reason=None, status_changed_at=now, ready_at=announced.ready_at or now
    )


def _goodbye(
    state: AgentSnapshot, request: DeregisterInstanceRequest, precedence: Precedence
) -> tuple[AgentSnapshot, Outcome]:
    """The goodbye of an instance. One that arrives before the announcement is remembered."""
    key = (request.deployment_id, request.instance_id)
    stored = state.deployments.get(request.deployment_id)
    error = refusal(state.agent, stored, None)
    if error is not None:
        # The pods of a deleted deployment say goodbye as well.
        return (state, Departed()) if isinstance(error, DeploymentDeletedError) else (state, Rejected(error))
    instance = state.instances.get(request.deployment_id, {}).get(request.instance_id)
    newest = instance.newest if instance is not None else state.departed.get(key)
    if newest is not None and precedence <= newest:
        return state, Stale()
    if instance is None:
        return departed(state, *key, precedence), Departed()
    return remove_instance(state, *key, GOODBYE, precedence), Departed()


def _new_deployment(state: AgentSnapshot, metadata: RegistrationMetadata) -> DeploymentState:
    return DeploymentState(
        id=metadata.deployment_id or "",
        agent_id=state.agent.id,
        agent_name=state.agent.name,
        status="Pending",
        status_changed_at=state.now,
        created_at=state.now,
    )


def _announced(
    state: AgentSnapshot,
    stored: DeploymentState | None,
    request: RegisterAgentRequest,
    metadata: RegistrationMetadata,
    precedence: Precedence,
) -> DeploymentState:
    """The deployment after this announcement."""
    now = state.now
    base = stored or _new_deployment(state, metadata)
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
