"""Request bodies other than registrations. Every body must be sent as `application/json` and is parsed strictly."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from litestar.dto import AbstractDTO
from litestar.openapi.spec import OpenAPIType, Operation, Parameter, Reference, RequestBody, Schema
from litestar.typing import FieldDefinition
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StringConstraints, ValidationError

from contracts.fields import DeploymentId, Image, Text
from contracts.messages import Facts
from services.agents.commands import AgentChange, Default, NewDeployment
from services.domain.state import Affinity, AutoPromote, ConversationKeys, ForwardAuthorization, OnFailure
from services.errors import InvalidRequest, PodiumError

# What `api.http.preconditions` accepts.
IF_MATCH_PATTERN = r'^(\*|"0"|"[1-9][0-9]{0,18}")$'
T = TypeVar("T", bound=BaseModel)

JSON = "application/json"
REASON_MAX_LENGTH = 2000

# In JSON, 3.0 is an integer too.
_WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
ProbeSeconds = Annotated[float, Field(strict=True, ge=0.1, le=86_400)]
# Up to a hundred years.
ConversationSeconds = Annotated[float, Field(strict=True, ge=1, le=3_155_760_000)]
ProbeThreshold = Annotated[
    int,
    Field(strict=True, ge=1, le=1000),
    _WHOLE,
]
CallsPerSecond = Annotated[float, Field(strict=True, gt=0, le=1_000_000)]
CallsInFlight = Annotated[int, Field(strict=True, gt=0, le=1_000_000), _WHOLE]
Reason = Annotated[Text, StringConstraints(max_length=REASON_MAX_LENGTH)]


class UnsupportedMediaType(PodiumError):
    """The body must be JSON: send it with the header 'content-type: application/json'."""

    status = 415
    reason = "unsupported-media-type"


class JsonBody(AbstractDTO[T]):
    """Reads a body with the model's own JSON parser, so that an error names its field.

    Litestar would decode to plain values first, and the model would not see the original JSON. For an empty body the
    handler gets the default of its `data`.
    """

    def decode_bytes(self, value: bytes) -> T:
        """The body as the model. Raises `UnsupportedMediaType`, `InvalidRequest`."""
        content_types = self.asgi_connection.headers.getall("content-type", [])
        if [each.partition(";")[0].strip().lower() for each in content_types] != [JSON]:
            raise UnsupportedMediaType
        try:
            return self.model_type.model_validate_json(value)
        except ValidationError as exc:
            raise first_problem(exc) from exc

    @classmethod
    def create_for_field_definition(cls, field_definition: FieldDefinition, handler_id: str, *_: object) -> None:
        """Do nothing: the model needs no preparation."""

    @classmethod
    def create_openapi_schema(
        cls,
        field_definition: FieldDefinition,  # noqa: ARG003 - Litestar passes it by name
        handler_id: str,  # noqa: ARG003 - as field_definition
        schema_creator: Any,  # noqa: ANN401 - its type is private in Litestar
    ) -> Reference | Schema:
        """The schema of the model."""
        schema: Reference | Schema = schema_creator.for_field_definition(
            FieldDefinition.from_annotation(cls.model_type)
        )
        return schema


@dataclass
class ConditionalChange(Operation):
    """An OpenAPI operation that accepts If-Match."""

    def __post_init__(self) -> None:
        condition = Parameter(
            name="If-Match",
            param_in="header",
            required=False,
            description='The generation that you read, in quotes, such as "3"; or * for any.',
            schema=Schema(type=OpenAPIType.STRING, pattern=IF_MATCH_PATTERN),
        )
        self.parameters = [*(self.parameters or []), condition]


@dataclass
class ConditionalChangeWithReason(ConditionalChange):
    """An OpenAPI operation that accepts If-Match and has an optional body."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.request_body, RequestBody):
            self.request_body.required = False


@dataclass
class OptionalBody(Operation):
    """An OpenAPI operation whose body may be missing."""

    def __post_init__(self) -> None:
        if isinstance(self.request_body, RequestBody):
            self.request_body.required = False


class NewDeploymentRequest(BaseModel):
    """A version that is created before its pod starts. Repeating the request with the same `id` is idempotent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    docker_image: Image
    registration_metadata: Facts | None = None
    sgp_deploy_id: Text | None = None
    helm_release_name: Text | None = None
    id: DeploymentId | None = Field(default=None, description="Generated if it is missing.")

    def command(self) -> NewDeployment:
        """The service command for this request."""
        return NewDeployment(**dict(self))


class PromoteRequest(BaseModel):
    """Why a version is promoted."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    reason: Reason | None = None


class RollbackRequest(BaseModel):
    """The target of a rollback, and its reason."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    to: DeploymentId | None = Field(
        default=None, description="A deployment id or 'legacy'; by default what served before."
    )
    reason: Reason | None = None
    force: StrictBool = Field(default=False, description="Roll back even if the target does not answer a probe.")


class RetryRequest(BaseModel):
    """How a parked message is sent again."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    accept_unsigned: StrictBool = Field(
        default=False,
        description="Sign it for its agent although it came without a valid signature: you have checked what it says.",
    )


class ChangeAgentRequest(BaseModel):
    """The settings of an agent that can be changed; a field that is missing or null stays unchanged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Text | None = None
    auto_promote: AutoPromote | None = None
    auto_promote_paused: StrictBool | None = None
    on_failure: OnFailure | None = Field(
        default=None,
        description="When production fails: 'hold' keeps it, 'rollback' returns to the newest earlier version that "
        "answers.",
    )
    probe_interval_seconds: ProbeSeconds | Default | None = Field(
        default=None, description="Time between two probes of a deployment; 'default': from the settings."
    )
    probe_threshold: ProbeThreshold | Default | None = Field(
        default=None, description="Equal results in a row that change the status; 'default': from the settings."
    )
    probe_timeout_seconds: ProbeSeconds | Default | None = Field(
        default=None, description="Timeout of a probe, at most the interval; 'default': from the settings."
    )
    affinity: Affinity | None = Field(
        default=None,
        description="What the calls of a conversation stay with: nothing, the deployment, or the instance.",
    )
    conversation_keys: ConversationKeys | Literal["none"] | None = Field(
        default=None, description="Whose ids in bodies are keys of conversations, besides those in headers."
    )
    conversation_idle_seconds: ConversationSeconds | Default | None = Field(
        default=None,
        description="How long a conversation stays open after its last call; 'default': from the settings.",
    )
    conversation_max_age_seconds: ConversationSeconds | Default | None = Field(
        default=None, description="How long it stays open after its first call; 'default': from the settings."
    )
    drain_deadline_seconds: ConversationSeconds | Default | None = Field(
        default=None,
        description="How long conversations stay with a deployment that has stopped serving; 'default': from the "
        "settings.",
    )

    forward_authorization: ForwardAuthorization | None = Field(
        default=None,
        description="Whether agents get the Authorization header of calls: 'strip' removes it, 'pass' forwards one "
        "that is not Podium's.",
    )
    calls_per_second: CallsPerSecond | Literal["none"] | None = Field(
        default=None, description="RPC calls per second and API process, of all callers together; 'none': no limit."
    )
    calls_in_flight: CallsInFlight | Literal["none"] | None = Field(
        default=None, description="RPC calls under way per API process, of all callers together; 'none': no limit."
    )

    def command(self) -> AgentChange:
        """The service command for this request."""
        return AgentChange(**dict(self))


def first_problem(error: ValidationError) -> InvalidRequest:
    """The first validation error, with its field."""
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or None
    message = problem["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{field}: {message}" if field else message, field=field)
