"""Response bodies. Field names and status words are those of the existing client."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from contracts.fields import AcpType, Cause, ErrorStyle, InputType
from services.agents.queries import AgentView, DeploymentView
from services.domain.state import (
    Affinity,
    AgentSnapshot,
    AgentState,
    AgentStatus,
    AutoPromote,
    ConversationKeys,
    DeploymentState,
    DeploymentStatus,
    ForwardAuthorization,
    InstanceState,
    OnFailure,
    serving,
)
from services.promotion.history import PERIODS_SHOWN, Change

UNKNOWN_IMAGE = "unknown"


class AgentAnswer(BaseModel):
    """An agent and what serves it."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    name: str
    description: str
    docker_image: str | None
    status: AgentStatus
    status_reason: str | None
    acp_type: AcpType
    acp_url: str | None = Field(description="The address that serves now; null if nothing serves.")
    agent_input_type: InputType | None
    registration_metadata: dict[str, Any] | None
    registered_at: datetime | None = Field(description="Time of the last registration without a deployment id.")
    production_deployment_id: str | None
    generation: int = Field(description="+1 with each change of what serves; send it as If-Match for a safe promote.")
    sequence: int = Field(description="Sequence of the agent's last event.")
    auto_promote: AutoPromote
    auto_promote_paused: bool
    on_failure: OnFailure = Field(description="What happens when production fails.")
    probe_interval_seconds: float | None = Field(
        description="Null, here and in the next two fields: from the settings."
    )
    probe_threshold: int | None
    probe_timeout_seconds: float | None
    affinity: Affinity = Field(description="What the calls of a conversation stay with.")
    conversation_keys: ConversationKeys | None = Field(description="Whose ids in bodies are keys of conversations.")
    conversation_idle_seconds: float | None = Field(
        description="Null, here and in the next two fields: from the settings."
    )
    conversation_max_age_seconds: float | None
    drain_deadline_seconds: float | None
    forward_authorization: ForwardAuthorization = Field(
        description="Whether the agent gets the Authorization header of calls."
    )
    calls_per_second: float | None = Field(description="Null, here and in the next field: no limit.")
    calls_in_flight: int | None
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None

    @classmethod
    def of(cls, agent: AgentState, acp_url: str | None, **more: str) -> Self:
        """The answer for an agent that is served from `acp_url`."""
        return cls(
            id=agent.id,
            name=agent.name,
            description=agent.description,
            docker_image=agent.docker_image,
            status=agent.status,
            status_reason=agent.status_reason,
            acp_type=agent.acp_type,
            acp_url=acp_url,
            agent_input_type=agent.agent_input_type,
            registration_metadata=agent.registration_metadata,
            registered_at=agent.registered_at,
            production_deployment_id=agent.production_deployment_id,
            generation=agent.generation,
            sequence=agent.event_seq,
            auto_promote=agent.auto_promote,
            auto_promote_paused=agent.auto_promote_paused,
            on_failure=agent.on_failure,
            probe_interval_seconds=agent.probe_interval_seconds,
            probe_threshold=agent.probe_threshold,
            probe_timeout_seconds=agent.probe_timeout_seconds,
            affinity=agent.affinity,
            conversation_keys=agent.conversation_keys,
            conversation_idle_seconds=agent.conversation_idle_seconds,
            conversation_max_age_seconds=agent.conversation_max_age_seconds,
            drain_deadline_seconds=agent.drain_deadline_seconds,
            forward_authorization=agent.forward_authorization,
            calls_per_second=agent.calls_per_second,
            calls_in_flight=agent.calls_in_flight,
            created_at=agent.created_at,
            updated_at=agent.updated_at,
            deleted_at=agent.deleted_at,
            **more,
        )

    @classmethod
    def of_state(cls, state: AgentSnapshot, **more: str) -> Self:
        """The answer for an agent after a change."""
        serves = serving(state)
        return cls.of(state.agent, serves.acp_url if serves else None, **more)

    @classmethod
    def of_view(cls, view: AgentView) -> Self:
        """The answer for an agent that was read."""
        return cls.of(view.agent, view.acp_url)


class RegisteredAgentAnswer(AgentAnswer):
    """An agent after its registration, with the key that its pods use for later registrations."""

    agent_api_key: str


class PeriodAnswer(BaseModel):
    """A period in production."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    generation: int = Field(description="The change that started the period.")
    since: datetime
    until: datetime | None = Field(description="Null while the deployment is in production.")


class InstanceAnswer(BaseModel):
    """One pod of a version."""

    model_config = ConfigDict(frozen=True)

    instance_id: str | None = Field(description="Null for the pod that names no instance.")
    acp_url: str
    rpc_path: str
    health_path: str
    status: DeploymentStatus
    status_reason: str | None
    status_changed_at: datetime
    registered_at: datetime | None
    ready_at: datetime | None

    @classmethod
    def all_of(cls, view: DeploymentView) -> list[Self]:
        """The pods of a deployment: its instances, or the only pod; none if it has no address."""
        deployment = view.deployment
        pods: Sequence[InstanceState | DeploymentState] = view.instances or ()
        if not deployment.has_instances and deployment.acp_url is not None:
            pods = [deployment]
        return [
            cls(
                instance_id=pod.name if isinstance(pod, InstanceState) else None,
                acp_url=pod.acp_url or "",
                rpc_path=pod.rpc_path,
                health_path=pod.health_path,
                status=pod.status,
                status_reason=pod.status_reason,
                status_changed_at=pod.status_changed_at,
                registered_at=pod.registered_at,
                ready_at=pod.ready_at,
            )
            for pod in pods
        ]


class DrainingAnswer(BaseModel):
    """A version that has stopped serving, while conversations stay with it."""

    model_config = ConfigDict(frozen=True)

    since: datetime
    open_conversations: int
    until: datetime | None = Field(description="When the last one ends at the latest; null if none is open.")


class DeploymentAnswer(BaseModel):
    """One version of an agent."""

    model_config = ConfigDict(frozen=True)

    id: str
    agent_id: UUID
    docker_image: str = Field(description=f"'{UNKNOWN_IMAGE}' until a registration contains an image.")
    status: DeploymentStatus
    status_reason: str | None
    acp_url: str | None
    rpc_path: str
    health_path: str
    error_style: ErrorStyle
    is_production: bool
    registration_metadata: dict[str, Any] | None
    sgp_deploy_id: str | None
    helm_release_name: str | None
    created_at: datetime
    first_registered_at: datetime | None
    registered_at: datetime | None
    ready_at: datetime | None
    promoted_at: datetime | None
    production_periods: list[PeriodAnswer] = Field(
        description=f"The last {PERIODS_SHOWN} periods in production, newest first."
    )
    instances: list[InstanceAnswer] | None = Field(description="Its pods and their health; null in lists.")
    draining: DrainingAnswer | None = Field(
        description="Its open conversations since it has stopped serving; null if it serves or is drained."
    )
    drained_at: datetime | None = Field(description="When the last of them had ended, since it last stopped serving.")
    expires_at: datetime | None = Field(description="When it was deleted; null if it is not deleted.")
    purged_at: datetime | None = Field(description="When its data were removed; the remaining fields are kept forever.")

    @classmethod
    def of(cls, view: DeploymentView, *, in_list: bool = False) -> Self:
        """The answer for a deployment; without its pods if it is one of a list."""
        deployment = view.deployment
        return cls(
            id=deployment.id,
            agent_id=deployment.agent_id,
            docker_image=deployment.docker_image or UNKNOWN_IMAGE,
            status=deployment.status,
            status_reason=deployment.status_reason,
            acp_url=deployment.acp_url,
            rpc_path=deployment.rpc_path,
            health_path=deployment.health_path,
            error_style=deployment.error_style,
            is_production=deployment.is_production,
            registration_metadata=deployment.registration_metadata,
            sgp_deploy_id=deployment.sgp_deploy_id,
            helm_release_name=deployment.helm_release_name,
            created_at=deployment.created_at,
            first_registered_at=deployment.first_registered_at,
            registered_at=deployment.registered_at,
            ready_at=deployment.ready_at,
            promoted_at=deployment.promoted_at,
            production_periods=[PeriodAnswer.model_validate(period) for period in view.production_periods],
            instances=None if in_list else InstanceAnswer.all_of(view),
            draining=(
                DrainingAnswer(
                    since=deployment.draining_since,
                    open_conversations=view.draining.number,
                    until=view.draining.until,
                )
                if view.draining is not None and deployment.draining_since is not None
                else None
            ),
            drained_at=deployment.drained_at,
            expires_at=deployment.expires_at,
            purged_at=deployment.purged_at,
        )


class PromotionAnswer(BaseModel):
    """One row of an agent's ledger: what served before, what serves from `at`, and why."""

    model_config = ConfigDict(frozen=True)

    generation: int
    cause: Cause
    actor: str
    reason: str | None
    from_deployment_id: str | None = Field(description="Null if the legacy address or nothing served.")
    from_acp_url: str | None
    from_docker_image: str | None
    to_deployment_id: str | None = Field(description="Null if the legacy address or nothing serves.")
    to_acp_url: str | None
    to_docker_image: str | None
    restored: int | None = Field(description="The generation that a rollback restored.")
    at: datetime
    request_id: str | None = Field(description="The id of the request that caused it.")
    on_behalf_of: str | None = Field(description="Whom the actor acted for, as it said.")
    until: datetime | None = Field(description="When the next generation started; null for the current row.")
    duration_seconds: float | None = Field(description="Seconds from `at` to `until`; null for the current row.")

    @classmethod
    def of(cls, change: Change) -> Self:
        """The answer for a row of the ledger."""
        lasted = change.lasted
        ends = {"until": change.until, "duration_seconds": None if lasted is None else lasted.total_seconds()}
        row = {name: getattr(change.promotion, name) for name in cls.model_fields if name not in ends}
        return cls.model_validate({**row, **ends})


class RegistrationAnswer(BaseModel):
    """One registration and its outcome."""

    model_config = ConfigDict(frozen=True)

    message_id: UUID | None = Field(description="Null if the message had no readable id.")
    agent_name: str | None
    deployment_id: str | None
    registered_at: datetime | None = Field(description="The time that the pod sent, as stored.")
    received_at: datetime
    instance_id: str | None = Field(description="The pod of the deployment; null if it names none.")
    outcome: Literal["Registered", "Stale", "Shadowed", "Departed", "Rejected", "Parked"]
    reason: str | None = Field(description="Why it was rejected.")
    parked_id: UUID | None = Field(description="The id of the parked message, if only that is stored.")
    attempts: int = Field(description="How many messages were parked for this reason.")


class DeletedAnswer(BaseModel):
    """The resource that was deleted."""

    model_config = ConfigDict(frozen=True)

    id: str
    message: str


class PartHealth(BaseModel):
    """Whether a server that this process uses answers."""

    ok: bool
    detail: str | None = None


class Readiness(BaseModel):
    """Whether this process can serve requests."""

    status: str
    parts: dict[str, PartHealth]


class RpcErrorData(BaseModel):
    """Why the gateway answered instead of the agent."""

    reason: str = Field(description="Stable, such as 'nothing-serves' or 'first-byte-timeout'.")
    sent: bool = Field(description="Whether the agent may have received the call: a retry may repeat its effects.")


class RpcError(BaseModel):
    """The error object of a JSON-RPC answer."""

    code: int
    message: str
    data: RpcErrorData


class RpcErrorAnswer(BaseModel):
    """A JSON-RPC 2.0 response of the gateway itself."""

    jsonrpc: Literal["2.0"] = "2.0"
    id: str | int | float | None = Field(description="The id of the call; null if it is unknown.")
    error: RpcError


class Problem(BaseModel):
    """An error (RFC 9457). `type` is stable; `detail` says what to do."""

    model_config = ConfigDict(frozen=True)

    type: str
    title: str
    status: int
    detail: str
    field: str | None = Field(default=None, description="The invalid field or parameter, if there is one.")
