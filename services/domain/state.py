"""An agent and its deployments as plain values: the input and the output of decisions."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from msgspec import Struct, field
from msgspec.structs import replace

from contracts.events import EVENT_TYPES, EventData, EventType, Serving
from contracts.fields import DEFAULT_HEALTH_PATH, DEFAULT_RPC_PATH, AcpType, Cause, ErrorStyle, InputType

AutoPromote = Literal["never", "first", "always"]
OnFailure = Literal["hold", "rollback"]
Affinity = Literal["none", "deployment", "instance"]
ConversationKeys = Literal["a2a", "acp"]
ForwardAuthorization = Literal["strip", "pass"]
AgentStatus = Literal["BuildOnly", "Ready", "Failed", "Deleted"]
DeploymentStatus = Literal["Pending", "Ready", "Failed"]

# The order of announcements: publication time, then message id. The greatest wins.
Precedence = tuple[datetime, UUID]


class AgentState(Struct, frozen=True, kw_only=True):
    """One row of `agents`."""

    id: UUID
    name: str
    created_at: datetime
    updated_at: datetime
    description: str = ""
    docker_image: str | None = None
    status: AgentStatus = "BuildOnly"
    status_reason: str | None = None
    acp_type: AcpType = "async"
    agent_input_type: InputType | None = None
    registration_metadata: dict[str, Any] | None = None
    legacy_acp_url: str | None = None
    legacy_rpc_path: str = DEFAULT_RPC_PATH
    legacy_health_path: str = DEFAULT_HEALTH_PATH
    legacy_error_style: ErrorStyle = "http"
    registered_at: datetime | None = None
    registered_message_id: UUID | None = None
    production_deployment_id: str | None = None
    generation: int = 0
    event_seq: int = 0
    auto_promote: AutoPromote = "first"
    auto_promote_paused: bool = False
    promote_requested_at: datetime | None = None
    on_failure: OnFailure = "hold"
    probe_interval_seconds: float | None = None  # None, here and below: the value of the setting
    probe_threshold: int | None = None
    probe_timeout_seconds: float | None = None
    affinity: Affinity = "deployment"
    conversation_keys: ConversationKeys | None = None
    conversation_idle_seconds: float | None = None  # None, here and below: the value of the setting
    conversation_max_age_seconds: float | None = None
    drain_deadline_seconds: float | None = None
    forward_authorization: ForwardAuthorization = "strip"
    calls_per_second: float | None = None  # None, here and below: no limit
    calls_in_flight: int | None = None
    deleted_at: datetime | None = None

    @property
    def newest(self) -> Precedence | None:
        """The precedence of the newest legacy announcement that was applied."""
        return _precedence(self.registered_at, self.registered_message_id)


class FailedProbes(Struct, frozen=True, kw_only=True):
    """What is known about the failed probes in a row of a deployment. Only the health checks load it."""

    since: datetime | None = None
    janitor_id: UUID | None = None  # of the first one
    confirmed: bool = False  # another janitor has seen one, too
    opinion_until: datetime | None = None  # how long production stays Ready for lack of a second opinion
    last_call_at: datetime | None = None  # the last answered call after the first failed probe


NO_FAILURES = FailedProbes()


class DeploymentState(Struct, frozen=True, kw_only=True):
    """One row of `deployments`, the name of the agent it belongs to, and the results of its last probes."""

    id: str
    agent_id: UUID
    agent_name: str
    status: DeploymentStatus
    status_changed_at: datetime
    created_at: datetime
    docker_image: str | None = None
    registration_metadata: dict[str, Any] | None = None
    status_reason: str | None = None
    acp_url: str | None = None
    rpc_path: str = DEFAULT_RPC_PATH
    health_path: str = DEFAULT_HEALTH_PATH
    error_style: ErrorStyle = "http"
    is_production: bool = False
    sgp_deploy_id: str | None = None
    helm_release_name: str | None = None
    registered_at: datetime | None = None
    registered_message_id: UUID | None = None
    first_registered_at: datetime | None = None
    ready_at: datetime | None = None
    promoted_at: datetime | None = None
    expires_at: datetime | None = None
    purged_at: datetime | None = None
    draining_since: datetime | None = None  # when it stopped serving, while conversations may be open
    drained_at: datetime | None = None
    has_instances: bool = False  # its pods are instances, and the address is that of one of them
    probe_streak: int = 0  # positive: answered probes in a row while not Ready; negative: failed probes in a row
    failures: FailedProbes = NO_FAILURES

    @property
    def newest(self) -> Precedence | None:
        """The precedence of the newest announcement that was applied."""
        return _precedence(self.registered_at, self.registered_message_id)


class InstanceState(Struct, frozen=True, kw_only=True):
    """One row of `instances`, and the results of its last probes. The id is empty for the pod that names none."""

    deployment_id: str
    instance_id: str
    agent_id: UUID
    acp_url: str
    rpc_path: str
    health_path: str
    status: DeploymentStatus
    status_changed_at: datetime
    registered_at: datetime
    registered_message_id: UUID
    created_at: datetime
    status_reason: str | None = None
    ready_at: datetime | None = None
    probe_streak: int = 0  # as of a deployment
    failures: FailedProbes = NO_FAILURES

    @property
    def newest(self) -> Precedence:
        """The precedence of the newest announcement that was applied."""
        return self.registered_at, self.registered_message_id

    @property
    def name(self) -> str | None:
        """Its id; None if it names none."""
        return self.instance_id or None


# By deployment id, then by instance id.
Instances = Mapping[str, Mapping[str, InstanceState]]


class LedgerRow(Struct, frozen=True, kw_only=True):
    """One row of `promotions`: what served before, what serves from `at` on, and why."""

    agent_id: UUID
    generation: int
    cause: Cause
    actor: str
    reason: str | None
    before: Serving | None
    after: Serving | None
    restored: int | None
    at: datetime
    request_id: str | None = None
    on_behalf_of: str | None = None


class Event(Struct, frozen=True, kw_only=True):
    """One row of `outbox`."""

    type: EventType
    agent_id: UUID
    agent_name: str
    subject: str
    sequence: int
    generation: int
    data: EventData
    traceparent: str | None = None


class AgentSnapshot(Struct, frozen=True, kw_only=True):
    """The input of one decision, and the ledger rows and events that it adds.

    `deployments` holds the production deployment and those that the decision names, of this agent or another.
    """

    agent: AgentState
    now: datetime  # the database's clock, read after the agent was locked
    deployments: Mapping[str, DeploymentState] = field(default_factory=dict)
    instances: Instances = field(default_factory=dict)  # of those deployments that have any
    departed: Mapping[tuple[str, str], Precedence] = field(default_factory=dict)  # by deployment and instance id
    instances_max: int = 100  # of one deployment
    last_cutover_at: datetime | None = None
    name_deleted_at: datetime | None = None  # the newest deletion of an earlier agent of this name
    traceparent: str | None = None  # W3C trace context of the request or message
    request_id: str | None = None  # of the request, for the ledger
    on_behalf_of: str | None = None  # whom the caller acts for, as it says
    ready_requires_probe: bool = False  # Ready needs an answered probe, not only an announcement
    ledger: tuple[LedgerRow, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def production(self) -> DeploymentState | None:
        """The deployment in production, or None."""
        pointer = self.agent.production_deployment_id
        return self.deployments[pointer] if pointer is not None else None

    def with_deployment(self, deployment: DeploymentState) -> "AgentSnapshot":
        """The snapshot with this deployment in place of the stored one."""
        return replace(self, deployments={**self.deployments, deployment.id: deployment})

    def with_instance(self, instance: InstanceState) -> "AgentSnapshot":
        """The snapshot with this instance in place of the stored one."""
        own = {**self.instances.get(instance.deployment_id, {}), instance.instance_id: instance}
        return replace(self, instances={**self.instances, instance.deployment_id: own})

    def without_instance(self, deployment_id: str, instance_id: str) -> "AgentSnapshot":
        """The snapshot without this instance."""
        own = {id_: each for id_, each in self.instances.get(deployment_id, {}).items() if id_ != instance_id}
        return replace(self, instances={**self.instances, deployment_id: own})


def serving(state: AgentSnapshot) -> Serving | None:
    """What serves the agent: its production deployment (Failed or not), else its legacy address, else nothing."""
    if state.agent.deleted_at is not None:
        return None
    production = state.production
    if production is not None:
        return Serving(deployment_id=production.id, acp_url=production.acp_url, docker_image=production.docker_image)
    if state.agent.legacy_acp_url is not None:
        return Serving(deployment_id=None, acp_url=state.agent.legacy_acp_url, docker_image=state.agent.docker_image)
    return None


def status_of_agent(state: AgentSnapshot) -> tuple[AgentStatus, str | None]:
    """The agent's status, derived from what serves it, and the reason."""
    if state.agent.deleted_at is not None:
        return "Deleted", None
    production = state.production
    if production is not None and production.status == "Failed":
        return "Failed", production.status_reason
    if production is not None or state.agent.legacy_acp_url is not None:
        return "Ready", None
    return "BuildOnly", None


def emit(state: AgentSnapshot, data: EventData, *, subject: str | None = None) -> AgentSnapshot:
    """Add an event with the next sequence. Its subject is the agent's id, unless `subject` names a deployment."""
    sequence = state.agent.event_seq + 1
    event = Event(
        type=EVENT_TYPES[type(data)],
        agent_id=state.agent.id,
        agent_name=state.agent.name,
        subject=subject or str(state.agent.id),
        sequence=sequence,
        generation=state.agent.generation,
        data=data,
        traceparent=state.traceparent,
    )
    return replace(state, agent=replace(state.agent, event_seq=sequence), events=(*state.events, event))


def _precedence(at: datetime | None, message_id: UUID | None) -> Precedence | None:
    return (at, message_id) if at is not None and message_id is not None else None
