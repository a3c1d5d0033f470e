"""A message that came in, and what can become of it."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from contracts.messages import RegisterAgentRequest, RegisterBuildRequest
from services.errors import PodiumError


@dataclass(frozen=True, slots=True)
class Announcement:
    """A well-formed message, from the queue or over HTTP."""

    request: RegisterAgentRequest | RegisterBuildRequest
    message_id: UUID
    registered_at: datetime | None  # None: now, by the database's clock
    traceparent: str | None = None

    name: str = field(init=False)
    """The agent it speaks for."""
    deployment_id: str | None = field(init=False)
    """The version that speaks; None for a legacy agent and for a build."""

    def __post_init__(self) -> None:
        # Not properties: each message of a batch is asked for them again and again.
        request = self.request
        deployment_id = request.deployment_id if isinstance(request, RegisterAgentRequest) else None
        object.__setattr__(self, "name", request.name)
        object.__setattr__(self, "deployment_id", deployment_id)


@dataclass(frozen=True, slots=True)
class Registered:
    """Applied."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Decided before; nothing changed."""


@dataclass(frozen=True, slots=True)
class Stale:
    """Something newer was applied before; nothing changed."""


@dataclass(frozen=True, slots=True)
class Shadowed:
    """The legacy address was noted, but the agent's production deployment keeps the traffic."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Refused; nothing changed."""

    error: PodiumError


Outcome = Registered | Duplicate | Stale | Shadowed | Rejected
