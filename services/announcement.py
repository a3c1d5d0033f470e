"""A message that came in, and what can become of it."""

from dataclasses import dataclass
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

    @property
    def name(self) -> str:
        """The agent it speaks for."""
        return self.request.name

    @property
    def deployment_id(self) -> str | None:
        """The version that speaks; None for a legacy agent and for a build."""
        return self.request.deployment_id if isinstance(self.request, RegisterAgentRequest) else None


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
