"""What a pod says of itself: the body of `POST /agents/register` and of the message on the queue."""

from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from contracts.fields import (
    AcpType,
    AgentName,
    DeploymentId,
    ErrorStyle,
    Image,
    InputType,
    Moment,
    ServiceAddress,
    Text,
    UrlPath,
    check_storable,
)

REGISTRATION_MAX_BYTES = 1024 * 1024

Facts = Annotated[dict[str, Any], AfterValidator(check_storable)]


class RegistrationMetadata(BaseModel):
    """Facts about the version that announces itself; fields unknown here are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    deployment_id: DeploymentId | None = Field(
        default=None, description="The version that speaks. Without it the agent is a legacy agent."
    )
    docker_image: Image | None = Field(default=None, description="The version's image: once named, it cannot change.")
    rpc_path: UrlPath | None = Field(default=None, description="Where RPC goes below acp_url; /api if not named.")
    health_path: UrlPath | None = Field(default=None, description="Health page below acp_url; /healthz if not named.")
    error_style: ErrorStyle | None = Field(
        default=None,
        description="'jsonrpc': the gateway's own failures reach this agent's callers as HTTP 200 + JSON-RPC error.",
    )

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        check_storable(self.model_extra)
        return self

    def facts(self) -> dict[str, Any]:
        """All that was announced, named fields and others alike, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


class RegisterAgentRequest(BaseModel):
    """A pod's announcement over HTTP: the database's clock dates it, and it gets an id of its own there."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: AgentName
    acp_url: ServiceAddress = Field(
        description="Base address of the pod's JSON-RPC server, such as http://10.0.0.7:8000"
    )
    description: Text | None = None
    acp_type: AcpType | None = Field(default=None, description="'async' for a new agent that names none.")
    agent_id: Text | None = Field(default=None, description="If given, it must be the id of the named agent.")
    agent_input_type: InputType | None = None
    registration_metadata: RegistrationMetadata | None = None

    @property
    def deployment_id(self) -> str | None:
        """The version that speaks; None for a legacy agent."""
        return self.registration_metadata.deployment_id if self.registration_metadata else None


class RegisterAgent(RegisterAgentRequest):
    """A pod's announcement on the queue, sent again under the same `message_id` until the broker confirms it."""

    message_id: UUID
    registered_at: Moment = Field(description="When the pod made this announcement; the newest one wins.")


class RegisterBuildRequest(BaseModel):
    """An agent that has been built but has no pod yet."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: AgentName
    description: Text | None = None
    docker_image: Image | None = None
    acp_type: AcpType | None = None
    agent_input_type: InputType | None = None
    registration_metadata: Facts | None = None
