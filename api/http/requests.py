"""What the API takes beyond announcements, and how bodies are read: strictly, whatever content type they claim."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from litestar.dto import AbstractDTO
from litestar.openapi.spec import OpenAPIType, Operation, Parameter, Reference, RequestBody, Schema
from litestar.typing import FieldDefinition
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints, ValidationError

from contracts.fields import DeploymentId, Image, Text
from contracts.messages import Facts
from services.agents.commands import AgentChange, Default, NewDeployment
from services.domain.state import AutoPromote, OnFailure
from services.errors import InvalidRequest

T = TypeVar("T", bound=BaseModel)

REASON_MAX_LENGTH = 2000

ProbeSeconds = Annotated[float, Field(strict=True, ge=0.1, le=86_400)]
Reason = Annotated[Text, StringConstraints(max_length=REASON_MAX_LENGTH)]


class JsonBody(AbstractDTO[T]):
    """Reads a body with the model's own JSON parser: what it refuses is refused with the field named.

    Litestar would decode to plain values first, and lose what only the bytes tell. An empty body is the default of
    the handler's `data`.
    """

    def decode_bytes(self, value: bytes) -> T:
        """The body as the model. Raises `InvalidRequest`."""
        try:
            return self.model_type.model_validate_json(value)
        except ValidationError as exc:
            raise first_problem(exc) from exc

    @classmethod
    def create_for_field_definition(cls, field_definition: FieldDefinition, handler_id: str, *_: object) -> None:
        """Nothing is prepared: the model reads itself."""

    @classmethod
    def create_openapi_schema(
        cls,
        field_definition: FieldDefinition,  # noqa: ARG003 - Litestar passes it by name
        handler_id: str,  # noqa: ARG003 - as field_definition
        schema_creator: Any,  # noqa: ANN401 - Litestar keeps its type to itself
    ) -> Reference | Schema:
        """The model's schema."""
        schema: Reference | Schema = schema_creator.for_field_definition(
            FieldDefinition.from_annotation(cls.model_type)
        )
        return schema


@dataclass
class ConditionalChange(Operation):
    """An operation that takes If-Match, and whose body may be left out."""

    def __post_init__(self) -> None:
        if isinstance(self.request_body, RequestBody):
            self.request_body.required = False
        if_match = Parameter(
            name="If-Match",
            param_in="header",
            required=False,
            description='The generation at which you looked, in quotes, such as "3"; or *.',
            schema=Schema(type=OpenAPIType.STRING),
        )
        self.parameters = [*(self.parameters or []), if_match]


class NewDeploymentRequest(BaseModel):
    """A version known ahead of its pod; repeat it with the same `id` as often as you like."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    docker_image: Image
    registration_metadata: Facts | None = None
    sgp_deploy_id: Text | None = None
    helm_release_name: Text | None = None
    id: DeploymentId | None = Field(default=None, description="A new one is made if it is left out.")

    def command(self) -> NewDeployment:
        """What the service takes."""
        return NewDeployment(**dict(self))


class PromoteRequest(BaseModel):
    """Why a version goes to production."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    reason: Reason | None = None


class RollbackRequest(BaseModel):
    """Where to go back to, and why."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    to: DeploymentId | None = Field(
        default=None, description="A deployment id or 'legacy'; left out: what served before."
    )
    reason: Reason | None = None
    force: StrictBool = Field(default=False, description="Go there even if it does not answer a probe.")


class ChangeAgentRequest(BaseModel):
    """What can be set of an agent; what is left out or null stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Text | None = None
    auto_promote: AutoPromote | None = None
    auto_promote_paused: StrictBool | None = None
    on_failure: OnFailure | None = Field(
        default=None,
        description="When production fails: 'hold' it, or 'rollback' to the newest earlier version that answers.",
    )
    probe_interval_seconds: ProbeSeconds | Default | None = Field(
        default=None, description="How often each deployment is asked; 'default': as the settings say."
    )
    probe_threshold: Annotated[int, Field(strict=True, ge=1, le=1000)] | Default | None = Field(
        default=None, description="Probes in a row that must agree; 'default': as the settings say."
    )
    probe_timeout_seconds: ProbeSeconds | Default | None = Field(
        default=None, description="Longest probe, never longer than the interval; 'default': as the settings say."
    )

    def command(self) -> AgentChange:
        """What the service takes."""
        return AgentChange(**dict(self))


def first_problem(error: ValidationError) -> InvalidRequest:
    """The first complaint, with the field it is about."""
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or None
    message = problem["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{field}: {message}" if field else message, field=field)
