"""The state of the sequential model, on plain values.

Agents are identified by name and life: `a#2` is the second agent of the name `a`. Times are numbers that compare as the
real times do.
"""

from dataclasses import dataclass, field
from uuid import UUID

from tests.support.reference_model.rollback_walk import LEGACY

Moment = float
Address = tuple[str, str]  # acp_url, rpc_path

RESOLUTION: Moment = 1e-6  # between two cutovers of one transaction


class Refused(Exception):
    """The guarantees refuse the operation; the text is the name of the domain error."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One announcement; `published` is None if it gets the time of the database."""

    id: UUID
    agent: str
    deployment: str | None
    published: Moment | None
    way: str  # queue, HTTP or build
    url: str
    image: str | None = None
    description: str | None = None
    rpc_path: str | None = None
    fact: str | None = None
    agent_id: str | None = None  # the agent's label

    @property
    def address(self) -> Address:
        """The address of its pod."""
        return self.url, self.rpc_path or "/api"

    @property
    def facts(self) -> dict[str, str]:
        """The metadata, as stored."""
        facts = {"fact": self.fact}
        if self.way != "build":
            facts |= {"deployment_id": self.deployment, "docker_image": self.image, "rpc_path": self.rpc_path}
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(kw_only=True)
class Version:
    """One deployment."""

    id: str
    owner: str
    created_at: Moment
    status_since: Moment
    status: str = "Pending"
    image: str | None = None
    facts: dict[str, str] = field(default_factory=dict)
    address: Address | None = None
    newest: tuple[Moment, UUID] | None = None
    first_registered_at: Moment | None = None
    promoted_at: Moment | None = None
    deleted_at: Moment | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One generation; what served is a deployment id, `legacy` or None."""

    cause: str
    before: str | None
    to: str | None
    to_url: str | None
    restored: int | None
    at: Moment


@dataclass(kw_only=True)
class Life:
    """One agent."""

    label: str
    name: str
    description: str = ""
    image: str | None = None
    facts: dict[str, str] = field(default_factory=dict)
    legacy: Address | None = None
    newest: tuple[Moment, UUID] | None = None
    production: str | None = None
    policy: str = "first"
    paused: bool = False
    promote_requested_at: Moment | None = None
    deleted_at: Moment | None = None
    ledger: list[Row] = field(default_factory=list)
    events: list[tuple[str, str | None, int]] = field(default_factory=list)  # type, deployment, generation

    @property
    def serves(self) -> str | None:
        """A deployment id, `legacy`, or None."""
        if self.deleted_at is not None:
            return None
        return self.production or (LEGACY if self.legacy else None)

    @property
    def generation(self) -> int:
        """The number of changes of what serves."""
        return len(self.ledger)

    def self_description(self) -> tuple[object, ...]:
        """The facts of `agent.registered`; the event is emitted if they change."""
        return self.description, self.image, dict(self.facts), self.legacy

    def emit(self, event: str, deployment: str | None = None) -> None:
        """Add one event, with the current generation."""
        self.events.append((event, deployment, self.generation))


@dataclass
class Tables:
    """All stored data, and the only function that changes what serves."""

    lives: dict[str, Life] = field(default_factory=dict)
    versions: dict[str, Version] = field(default_factory=dict)
    inbox: dict[UUID, tuple[str, str | None, str, Moment]] = field(default_factory=dict)
    parked: dict[tuple[str, str | UUID, str], int] = field(default_factory=dict)

    def of_name(self, name: str) -> list[Life]:
        """The agents of this name, oldest first; only the last one may be not deleted."""
        return [life for life in self.lives.values() if life.name == name]

    def cut_over(
        self,
        life: Life,
        cause: str,
        to: str | None,
        now: Moment,
        *,
        legacy_url: str | None = None,
        restored: int | None = None,
    ) -> None:
        """G14: add one ledger row, later than the last one, and the event that reports it, if a deployment moved."""
        before, url = life.serves, legacy_url
        at = max(now, life.ledger[-1].at + RESOLUTION) if life.ledger else now
        life.production = None if to == LEGACY else to
        if life.production is not None:
            version = self.versions[life.production]
            version.promoted_at, url = at, version.address[0] if version.address else None
        elif to == LEGACY and life.legacy and url is None:
            url = life.legacy[0]
        life.ledger.append(Row(cause=cause, before=before, to=to, to_url=url, restored=restored, at=at))
        if life.production is not None:
            life.emit("deployment.promoted", to)
        elif before not in {None, LEGACY}:
            life.emit("deployment.demoted", before)
