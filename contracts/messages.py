"""Announcements and goodbyes of pods: the bodies of messages on the queue and of requests."""

from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from contracts.fields import (
    AcpType,
    AgentName,
    DeploymentId,
    ErrorStyle,
    Image,
    InputType,
    InstanceId,
    Moment,
    ServiceAddress,
    Text,
    UrlPath,
    check_storable,
)

# An announcement in memory, parsed and validated, takes some tens of times as many bytes as its JSON.
REGISTRATION_MAX_BYTES = 64 * 1024

Facts = Annotated[dict[str, Any], AfterValidator(check_storable)]


class RegistrationMetadata(BaseModel):
    """Properties of the announced version; unknown fields are stored unchanged."""

    model_config = ConfigDict(extra="allow", frozen=True)

    deployment_id: DeploymentId | None = Field(
        default=None, description="Id of the announced version. Without it, the agent is a legacy agent."
    )
    instance_id: InstanceId | None = Field(
        default=None,
        description="Id of this pod among those of the version. Without it, a pod replaces the one that names none.",
    )
    docker_image: Image | None = Field(default=None, description="Image of the version; cannot change once set.")
    rpc_path: UrlPath | None = Field(
        default=None, description="Path of the JSON-RPC endpoint below acp_url; default /api."
    )
    health_path: UrlPath | None = Field(
        default=None, description="Path of the health page below acp_url; default /healthz."
    )
    error_style: ErrorStyle | None = Field(
        default=None,
        description="'jsonrpc': callers get gateway errors as HTTP 200 with a JSON-RPC error.",
    )

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        check_storable(self.model_extra)
        if self.instance_id is not None and self.deployment_id is None:
            raise ValueError("instance_id needs a deployment_id")
        return self

    def facts(self) -> dict[str, Any]:
        """All announced fields of the version, known and unknown, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"instance_id"})


class RegisterAgentRequest(BaseModel):
    """A pod's announcement over HTTP. The server assigns its id and its time, from the database's clock."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: AgentName
    acp_url: ServiceAddress = Field(
        description="Base address of the pod's JSON-RPC server, such as http://10.0.0.7:8000"
    )
    description: Text | None = None
    acp_type: AcpType | None = Field(default=None, description="Default for a new agent: 'async'.")
    agent_id: Text | None = Field(
        default=None, description="Optional check: must be the id of the agent with this name."
    )
    agent_input_type: InputType | None = None
    registration_metadata: RegistrationMetadata | None = None

    @property
    def deployment_id(self) -> str | None:
        """Id of the announced version; None for a legacy agent."""
        return self.registration_metadata.deployment_id if self.registration_metadata else None

    @property
    def instance_id(self) -> str | None:
        """Id of the announced pod; None if it names none."""
        return self.registration_metadata.instance_id if self.registration_metadata else None


class RegisterAgent(RegisterAgentRequest):
    """A pod's announcement on the queue. Retries until the broker confirms it must keep the same `message_id`."""

    message_id: UUID
    registered_at: Moment = Field(
        description="Time of the announcement by the pod's clock; the newest announcement wins."
    )


class RegisterBuildRequest(BaseModel):
    """Registers an agent that was built but has no pod yet."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: AgentName
    description: Text | None = None
    docker_image: Image | None = None
    acp_type: AcpType | None = None
    agent_input_type: InputType | None = None
    registration_metadata: Facts | None = None


class DeregisterInstanceRequest(BaseModel):
    """A pod's goodbye over HTTP: it gets no further calls. The server assigns its id and its time."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: AgentName
    deployment_id: DeploymentId
    instance_id: InstanceId


class DeregisterInstance(DeregisterInstanceRequest):
    """A pod's goodbye on the queue, with the routing key of its agent's announcements."""

    kind: Literal["deregister"]
    message_id: UUID
    registered_at: Moment = Field(
        description="Time of the goodbye by the pod's clock; the newest message of an instance wins."
    )
