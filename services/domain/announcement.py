"""An announcement, and its possible outcomes."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from contracts.messages import DeregisterInstanceRequest, RegisterAgentRequest, RegisterBuildRequest
from services.errors import PodiumError


@dataclass(frozen=True, slots=True)
class Announcement:
    """A valid registration, or the goodbye of an instance, from the queue or over HTTP."""

    request: RegisterAgentRequest | RegisterBuildRequest | DeregisterInstanceRequest
    message_id: UUID
    registered_at: datetime | None  # None: the time of the decision, by the database's clock
    traceparent: str | None = None

    name: str = field(init=False)
    """The name of the agent that it announces."""
    deployment_id: str | None = field(init=False)
    """The deployment that it announces; None for a legacy agent and for a build."""
    instance_id: str | None = field(init=False)
    """The pod of the deployment; None if it names none."""

    def __post_init__(self) -> None:
        # Fields rather than properties: a batch reads them many times for each message.
        request = self.request
        of_deployment = None if isinstance(request, RegisterBuildRequest) else request
        object.__setattr__(self, "name", request.name)
        object.__setattr__(self, "deployment_id", of_deployment.deployment_id if of_deployment else None)
        object.__setattr__(self, "instance_id", of_deployment.instance_id if of_deployment else None)


@dataclass(frozen=True, slots=True)
class Registered:
    """The announcement was applied."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The message id was decided before. Nothing changed."""


@dataclass(frozen=True, slots=True)
class Stale:
    """A newer announcement was applied before, or the name was deleted later. Nothing changed."""


@dataclass(frozen=True, slots=True)
class Shadowed:
    """The legacy address was stored, but the production deployment keeps the traffic."""


@dataclass(frozen=True, slots=True)
class Departed:
    """The goodbye was applied: the instance gets no further calls."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The announcement was refused. Nothing changed."""

    error: PodiumError


Outcome = Registered | Duplicate | Stale | Shadowed | Departed | Rejected
