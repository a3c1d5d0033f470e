"""The sequential reference model of registrations on plain values, written from the guarantees.

It shares no code with the product, and covers registrations only: no explicit promote, rollback or deletion.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from contracts.messages import DeregisterInstanceRequest, RegisterAgentRequest, RegisterBuildRequest

LEGACY = "legacy"

Message = RegisterAgentRequest | RegisterBuildRequest | DeregisterInstanceRequest
Messages = Mapping[UUID, Message]
Pair = tuple[datetime, UUID]
Address = tuple[str, str, str, str]  # acp_url, rpc_path, health_path, error_style


@dataclass(frozen=True)
class Observed:
    """Values that no guarantee determines, so the model takes them from the database."""

    ids: Mapping[str, str] = field(default_factory=dict)  # agent name -> id
    policies: Mapping[str, str] = field(default_factory=dict)  # agent name -> auto_promote
    moments: Mapping[tuple[str, int], datetime] = field(default_factory=dict)  # (agent name, generation) -> ledger.at


@dataclass
class Version:
    """One deployment."""

    agent: str
    image: str | None
    metadata: dict[str, Any]
    address: Address
    pair: Pair
    first_registered_at: datetime
    instances: dict[str, tuple[Address, Pair]] | None = None  # of those that have any
    ready: bool = True


@dataclass
class Service:
    """One agent."""

    name: str
    description: str = ""
    acp_type: str = "async"
    input_type: str | None = None
    image: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    legacy: Address | None = None
    pair: Pair | None = None
    production: str | None = None
    ledger: list[tuple[int, str, str | None, str | None]] = field(default_factory=list)  # generation, cause, from, to
    events: list[tuple[str, str | None, int]] = field(default_factory=list)  # type, deployment, generation

    @property
    def serves(self) -> str | None:
        """A deployment id, `legacy`, or None."""
        return self.production or (LEGACY if self.legacy else None)

    def emit(self, event: str, deployment: str | None = None) -> None:
        """Add one event, with the current generation."""
        self.events.append((event, deployment, len(self.ledger)))

    def facts(self) -> tuple[object, ...]:
        """The facts of `agent.registered`; the event is emitted if they change."""
        return (self.description, self.acp_type, self.input_type, self.image, {**self.metadata}, self.legacy)

    def describe(self, message: RegisterAgentRequest | RegisterBuildRequest) -> None:
        """Store what the message says about the agent itself."""
        self.description = self.description if message.description is None else message.description
        self.acp_type = message.acp_type or self.acp_type
        self.input_type = message.agent_input_type or self.input_type


@dataclass
class Model:
    """The state after some messages, and the outcome of each."""

    observed: Observed = field(default_factory=Observed)
    services: dict[str, Service] = field(default_factory=dict)
    versions: dict[str, Version] = field(default_factory=dict)
    gone: dict[tuple[str, str, str], Pair] = field(default_factory=dict)  # agent name, deployment, instance

    def feed(self, message: Message, pair: Pair) -> str:
        """The outcome of the next message, published at `pair` (its time as stored after G4)."""
        service = self.services.get(message.name) or Service(message.name)
        outcome = self._apply(service, message, pair)
        if outcome in {"Registered", "Shadowed"}:
            self.services[service.name] = service
        return outcome

    def _apply(self, service: Service, message: Message, pair: Pair) -> str:
        if isinstance(message, RegisterBuildRequest):
            return self._build(service, message)
        if isinstance(message, DeregisterInstanceRequest):
            return self._goodbye(service, message, pair)
        if message.agent_id is not None and message.agent_id != self.observed.ids.get(service.name):
            return "Rejected"
        if message.deployment_id is None:
            return self._legacy(service, message, pair)
        return self._deployment(service, message, message.deployment_id, pair)

    def _build(self, service: Service, message: RegisterBuildRequest) -> str:
        before = service.facts()
        service.describe(message)
        service.image = message.docker_image or service.image
        service.metadata |= message.registration_metadata or {}
        if service.facts() != before or not service.events:
            service.emit("agent.registered")
        return "Registered"

    def _legacy(self, service: Service, message: RegisterAgentRequest, pair: Pair) -> str:
        """G12, and G4 for the agent's own announcements."""
        if service.pair is not None and pair <= service.pair:
            return "Stale"
        before, old_url = service.facts(), service.legacy[0] if service.legacy else None
        served = service.serves
        metadata = _metadata_of(message)
        service.describe(message)
        service.image = metadata.get("docker_image") or service.image
        service.metadata |= metadata
        service.legacy, service.pair = address_of(message), pair
        new_url = message.acp_url != old_url
        if service.production is None:
            if new_url:
                self._cut_over(service, "legacy", served, None)
            if new_url or service.facts() != before:
                service.emit("agent.registered")
            return "Registered"
        promoted_at = self.observed.moments[service.name, len(service.ledger)]
        if pair[0] > promoted_at and new_url:  # nothing sets a production Failed here
            self._cut_over(service, "legacy", served, None)
            service.emit("agent.registered")
            return "Registered"
        if service.facts() != before:
            service.emit("agent.registered")
        return "Shadowed"

    def _deployment(self, service: Service, message: RegisterAgentRequest, deployment: str, pair: Pair) -> str:
        """G5, G6, G4, G15 and G9, in this order."""
        version, metadata = self.versions.get(deployment), _metadata_of(message)
        image = metadata.get("docker_image")
        if version is not None and version.agent != service.name:
            return "Rejected"
        if version is not None and image is not None and version.image is not None and image != version.image:
            return "Rejected"
        instance = metadata.pop("instance_id", None)
        if instance is not None or (version is not None and version.instances is not None):
            return self._instance(service, message, deployment, instance or "", pair)
        if version is not None and pair <= version.pair:
            return "Stale"
        if not service.events:
            service.describe(message)
            service.emit("agent.registered")
        address = address_of(message)
        if version is not None:
            moved = version.address[:2] != address[:2]
            version.image = version.image or image or service.image
            version.metadata |= metadata
            version.address, version.pair = address, pair
            if moved and service.production == deployment:
                service.emit("deployment.ready", deployment)
            return "Registered"
        self.versions[deployment] = Version(
            service.name, image or service.image, metadata, address, pair, first_registered_at=pair[0]
        )
        service.emit("deployment.created", deployment)
        self._first_ready(service, deployment, pair)
        return "Registered"

    def _instance(
        self, service: Service, message: RegisterAgentRequest, deployment: str, instance: str, pair: Pair
    ) -> str:
        """G59, G60: each pod by its own pair; the version's facts by the newest, older ones only where none are."""
        version, metadata, address = self.versions.get(deployment), _metadata_of(message), address_of(message)
        metadata.pop("instance_id", None)
        own = {} if version is None else version.instances
        if own is None:  # the first pod that names itself
            assert version is not None
            own = {"": (version.address, version.pair)}
        newest = own[instance][1] if instance in own else self.gone.get((service.name, deployment, instance))
        if newest is not None and pair <= newest:
            return "Stale"
        if not service.events:
            service.describe(message)
            service.emit("agent.registered")
        new = version is None
        if version is None:
            version = self.versions[deployment] = Version(
                service.name, None, {}, address, pair, first_registered_at=pair[0], ready=False
            )
            service.emit("deployment.created", deployment)
        version.image = version.image or metadata.get("docker_image") or service.image
        is_newest = new or pair > version.pair
        version.metadata = version.metadata | metadata if is_newest else metadata | version.metadata
        error_style = address[3] if is_newest else version.address[3]
        version.pair = max(pair, version.pair)
        moved = instance not in own or own[instance][0][:2] != address[:2]
        own[instance] = (address, pair)
        version.instances = own
        if moved:
            service.emit("instance.ready", deployment)
        version.address = (*own[min(own)][0][:3], error_style)
        if not version.ready:
            version.ready = True
            if new:
                self._first_ready(service, deployment, pair)
            else:
                service.emit("deployment.ready", deployment)
        return "Registered"

    def _goodbye(self, service: Service, message: DeregisterInstanceRequest, pair: Pair) -> str:
        """G60."""
        version = self.versions.get(message.deployment_id)
        if version is not None and version.agent != service.name:
            return "Rejected"
        key = (service.name, message.deployment_id, message.instance_id)
        own = (version.instances if version is not None else None) or {}
        known = own.get(message.instance_id)
        newest = known[1] if known is not None else self.gone.get(key)
        if newest is not None and pair <= newest:
            return "Stale"
        self.gone[key] = pair
        if version is not None and known is not None:
            del own[message.instance_id]
            service.emit("instance.gone", message.deployment_id)
            if own:
                version.address = (*own[min(own)][0][:3], version.address[3])
            else:
                version.ready = False
                service.emit("deployment.failed", message.deployment_id)
        return "Departed"

    def _first_ready(self, service: Service, deployment: str, pair: Pair) -> None:
        service.emit("deployment.ready", deployment)
        policy = self.observed.policies.get(service.name, "first")
        production = self.versions[service.production] if service.production else None
        newest = production is None or pair[0] > production.first_registered_at
        if (policy == "first" and service.serves is None) or (policy == "always" and newest):
            self._cut_over(service, policy, service.serves, deployment)

    def _cut_over(self, service: Service, cause: str, served: str | None, to: str | None) -> None:
        before, service.production = service.production, to
        service.ledger.append((len(service.ledger) + 1, cause, served, service.serves))
        if to is not None:
            service.emit("deployment.promoted", to)
        elif before is not None:
            service.emit("deployment.demoted", before)


def _metadata_of(message: RegisterAgentRequest) -> dict[str, Any]:
    metadata = message.registration_metadata
    return metadata.model_dump(mode="json", exclude_unset=True) if metadata else {}


def address_of(message: RegisterAgentRequest) -> Address:
    """The address fields of an announcement, with defaults for those it omits."""
    metadata = _metadata_of(message)
    return (
        message.acp_url,
        metadata.get("rpc_path") or "/api",
        metadata.get("health_path") or "/healthz",
        metadata.get("error_style") or "http",
    )
