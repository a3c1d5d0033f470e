"""The sequential reference model: what registrations must lead to, written from the rules and not from the code.

    assert_matches(session, {message.message_id: message, ...})

reads the inbox in the order in which messages were first decided, replays that order here, and compares every agent,
deployment, ledger row and event. It knows registrations alone: no promote, rollback or deletion by hand.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.messages import RegisterAgentRequest, RegisterBuildRequest
from services.models import Agent, Deployment, OutboxEvent, Promotion, Registration

LEGACY = "legacy"

Message = RegisterAgentRequest | RegisterBuildRequest
Messages = Mapping[UUID, Message]
Pair = tuple[datetime, UUID]
Address = tuple[str, str, str, str]  # acp_url, rpc_path, health_path, error_style


@dataclass(frozen=True)
class Observed:
    """What no rule predicts and the model therefore takes from the database."""

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
        """A deployment id, `legacy`, or nothing."""
        return self.production or (LEGACY if self.legacy else None)

    def tell(self, event: str, deployment: str | None = None) -> None:
        """One event, at the generation that holds now."""
        self.events.append((event, deployment, len(self.ledger)))

    def facts(self) -> tuple[object, ...]:
        """What `agent.registered` tells of; another one of these is news."""
        return (self.description, self.acp_type, self.input_type, self.image, {**self.metadata}, self.legacy)

    def describe(self, message: Message) -> None:
        """Take what the message says of the agent itself."""
        self.description = self.description if message.description is None else message.description
        self.acp_type = message.acp_type or self.acp_type
        self.input_type = message.agent_input_type or self.input_type


@dataclass
class Model:
    """The state after some messages, and what became of each."""

    observed: Observed = field(default_factory=Observed)
    services: dict[str, Service] = field(default_factory=dict)
    versions: dict[str, Version] = field(default_factory=dict)

    def feed(self, message: Message, pair: Pair) -> str:
        """The outcome of the next message, published at `pair` (its time as stored after rule 4)."""
        service = self.services.get(message.name) or Service(message.name)
        outcome = self._apply(service, message, pair)
        if outcome in {"Registered", "Shadowed"}:
            self.services[service.name] = service
        return outcome

    def _apply(self, service: Service, message: Message, pair: Pair) -> str:
        if isinstance(message, RegisterBuildRequest):
            return self._build(service, message)
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
            service.tell("agent.registered")
        return "Registered"

    def _legacy(self, service: Service, message: RegisterAgentRequest, pair: Pair) -> str:
        """Rule 12, and rule 4 for the agent's own pair."""
        if service.pair is not None and pair <= service.pair:
            return "Stale"
        before, old_url = service.facts(), service.legacy[0] if service.legacy else None
        served = service.serves
        metadata = _metadata_of(message)
        service.describe(message)
        service.image = metadata.get("docker_image") or service.image
        service.metadata |= metadata
        service.legacy, service.pair = _address_of(message), pair
        new_url = message.acp_url != old_url
        if service.production is None:
            if new_url:
                self._cut_over(service, "legacy", served, None)
            if new_url or service.facts() != before:
                service.tell("agent.registered")
            return "Registered"
        promoted_at = self.observed.moments[service.name, len(service.ledger)]
        if pair[0] > promoted_at and new_url:  # nothing sets a production Failed here
            self._cut_over(service, "legacy", served, None)
            service.tell("agent.registered")
            return "Registered"
        if service.facts() != before:
            service.tell("agent.registered")
        return "Shadowed"

    def _deployment(self, service: Service, message: RegisterAgentRequest, deployment: str, pair: Pair) -> str:
        """Rules 5, 6, 4, 15 and 9, in this order."""
        version, metadata = self.versions.get(deployment), _metadata_of(message)
        image = metadata.get("docker_image")
        if version is not None and version.agent != service.name:
            return "Rejected"
        if version is not None and image is not None and version.image is not None and image != version.image:
            return "Rejected"
        if version is not None and pair <= version.pair:
            return "Stale"
        if not service.events:
            service.describe(message)
            service.tell("agent.registered")
        address = _address_of(message)
        if version is not None:
            moved = version.address[:2] != address[:2]
            version.image = version.image or image or service.image
            version.metadata |= metadata
            version.address, version.pair = address, pair
            if moved and service.production == deployment:
                service.tell("deployment.ready", deployment)
            return "Registered"
        self.versions[deployment] = Version(
            service.name, image or service.image, metadata, address, pair, first_registered_at=pair[0]
        )
        service.tell("deployment.created", deployment)
        service.tell("deployment.ready", deployment)
        policy = self.observed.policies.get(service.name, "first")
        production = self.versions[service.production] if service.production else None
        newest = production is None or pair[0] > production.first_registered_at
        if (policy == "first" and service.serves is None) or (policy == "always" and newest):
            self._cut_over(service, policy, service.serves, deployment)
        return "Registered"

    def _cut_over(self, service: Service, cause: str, served: str | None, to: str | None) -> None:
        before, service.production = service.production, to
        service.ledger.append((len(service.ledger) + 1, cause, served, service.serves))
        if to is not None:
            service.tell("deployment.promoted", to)
        elif before is not None:
            service.tell("deployment.demoted", before)


def replay(rows: Sequence[Registration], messages: Messages, observed: Observed) -> Model:
    """The model fed with the inbox, in `seq` order; raises if an outcome in it is another than the model's."""
    model = Model(observed)
    for row in sorted(rows, key=lambda row: row.seq):
        message = messages.get(row.message_id)
        if message is None:
            assert row.outcome == "Rejected", f"{row.message_id} was applied, but nobody sent it"
            continue
        assert row.registered_at is not None
        outcome = model.feed(message, (row.registered_at, row.message_id))
        about = f"message {row.message_id} (seq {row.seq}) of {row.agent_name}/{row.deployment_id}"
        assert row.outcome == outcome, f"{about} became {row.outcome}, the model says {outcome}"
    return model


async def assert_matches(session: AsyncSession, messages: Messages) -> Model:
    """Compare the whole database with the model; each of `messages` must have been decided."""
    rows = list(await session.scalars(select(Registration).order_by(Registration.seq)))
    missing = messages.keys() - {row.message_id for row in rows}
    assert not missing, f"never decided: {sorted(map(str, missing))}"
    agents = {agent.id: agent for agent in await session.scalars(select(Agent))}
    ledger = list(await session.scalars(select(Promotion).order_by(Promotion.generation)))
    observed = Observed(
        ids={agent.name: str(agent.id) for agent in agents.values()},
        policies={agent.name: agent.auto_promote for agent in agents.values()},
        moments={(agents[row.agent_id].name, row.generation): row.at for row in ledger},
    )
    model = replay(rows, messages, observed)
    assert {agent.name for agent in agents.values()} == model.services.keys()
    events = (await session.execute(_EVENTS)).all()
    for agent in agents.values():
        _same_agent(agent, model.services[agent.name])
        told = [event for event in events if event.agent_id == agent.id]
        _same_history([row for row in ledger if row.agent_id == agent.id], told, model.services[agent.name])
    deployments = {each.id: each for each in await session.scalars(select(Deployment))}
    assert deployments.keys() == model.versions.keys()
    for each in deployments.values():
        _same_deployment(each, agents[each.agent_id].name, model)
    _addresses_are_the_newest(rows, messages, agents.values(), deployments)
    return model


_EVENTS = select(
    OutboxEvent.agent_id, OutboxEvent.type, OutboxEvent.agent_name, OutboxEvent.subject, OutboxEvent.generation
).order_by(OutboxEvent.sequence)


def _same_agent(agent: Agent, service: Service) -> None:
    stored = {
        "description": agent.description,
        "acp_type": agent.acp_type,
        "agent_input_type": agent.agent_input_type,
        "docker_image": agent.docker_image,
        "registration_metadata": agent.registration_metadata or {},
        "legacy": _legacy_address(agent),
        "pair": _pair(agent.registered_at, agent.registered_message_id),
        "production": agent.production_deployment_id,
        "generation": agent.generation,
        "event_seq": agent.event_seq,
    }
    expected = {
        "description": service.description,
        "acp_type": service.acp_type,
        "agent_input_type": service.input_type,
        "docker_image": service.image,
        "registration_metadata": service.metadata,
        "legacy": service.legacy,
        "pair": service.pair,
        "production": service.production,
        "generation": len(service.ledger),
        "event_seq": len(service.events),
    }
    assert stored == expected, f"agent {agent.name}"


def _same_history(ledger: Sequence[Promotion], told: Sequence[Row[*tuple[Any, ...]]], service: Service) -> None:
    stored = [(row.generation, row.cause, _side(row, "from"), _side(row, "to")) for row in ledger]
    assert stored == service.ledger, f"ledger of {service.name}"
    events = [
        (
            event.type.removeprefix("podium.").removesuffix(".v1"),
            event.subject if ".deployment." in event.type else None,
            event.generation,
        )
        for event in told
    ]
    assert events == service.events, f"events of {service.name}"


def _same_deployment(stored: Deployment, agent_name: str, model: Model) -> None:
    version = model.versions[stored.id]
    assert stored.status == "Ready"
    actual = Version(
        agent_name,
        stored.docker_image,
        stored.registration_metadata or {},
        (stored.acp_url or "", stored.rpc_path, stored.health_path, stored.error_style),
        _pair(stored.registered_at, stored.registered_message_id) or version.pair,
        stored.first_registered_at or version.first_registered_at,
    )
    assert actual == version, f"deployment {stored.id}"
    assert stored.is_production == (model.services[agent_name].production == stored.id), f"flag of {stored.id}"


def _addresses_are_the_newest(
    rows: Sequence[Registration],
    messages: Messages,
    agents: Iterable[Agent],
    deployments: Mapping[str, Deployment],
) -> None:
    """Rule 3, whatever the order: of all messages that were not refused, the newest one's address is stored."""
    newest: dict[tuple[str, str | None], tuple[Pair, Address]] = {}
    for row in rows:
        message = messages.get(row.message_id)
        if row.outcome == "Rejected" or row.registered_at is None or not isinstance(message, RegisterAgentRequest):
            continue
        entry = ((row.registered_at, row.message_id), _address_of(message))
        key = (row.agent_name, row.deployment_id)
        newest[key] = max(newest.get(key, entry), entry)
    by_name = {agent.name: agent for agent in agents}
    for (name, deployment_id), (_, address) in newest.items():
        if deployment_id is None:
            assert _legacy_address(by_name[name]) == address, f"legacy address of {name}"
        else:
            each = deployments[deployment_id]
            stored = (each.acp_url, each.rpc_path, each.health_path, each.error_style)
            assert stored == address, f"address of {deployment_id}"


@dataclass(frozen=True)
class Cutover:
    """One generation of a history, for the walk that a rollback takes."""

    to: str | None  # a deployment id, `legacy`, or nothing
    restored: int | None = None  # 1 is the first generation


def rollback_target(history: Sequence[Cutover], serves: str | None, usable: Callable[[str], bool]) -> int | None:
    """Rule 17: the generation that a rollback goes back to; None if nothing that served before can serve now."""
    generation = len(history)
    while generation > 0:
        generation = history[generation - 1].restored or generation
        to = history[generation - 1].to
        if to is not None and to != serves and usable(to):
            return generation
        generation -= 1
    return None


def _metadata_of(message: RegisterAgentRequest) -> dict[str, Any]:
    metadata = message.registration_metadata
    return metadata.model_dump(mode="json", exclude_unset=True) if metadata else {}


def _address_of(message: RegisterAgentRequest) -> Address:
    metadata = _metadata_of(message)
    return (
        message.acp_url,
        metadata.get("rpc_path") or "/api",
        metadata.get("health_path") or "/healthz",
        metadata.get("error_style") or "http",
    )


def _legacy_address(agent: Agent) -> Address | None:
    if agent.legacy_acp_url is None:
        return None
    return (agent.legacy_acp_url, agent.legacy_rpc_path, agent.legacy_health_path, agent.legacy_error_style)


def _side(row: Promotion, side: str) -> str | None:
    deployment: str | None = getattr(row, f"{side}_deployment_id")
    return deployment or (LEGACY if getattr(row, f"{side}_acp_url") else None)


def _pair(at: datetime | None, message_id: UUID | None) -> Pair | None:
    return (at, message_id) if at is not None and message_id is not None else None
