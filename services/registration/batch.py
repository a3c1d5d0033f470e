"""Decides a batch of announcements in one transaction: agents, deployments, promotions, events and the inbox."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from uuid import UUID

from msgspec.structs import replace
from pydantic import ValidationError
from pydantic_core import from_json
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.messages import REGISTRATION_MAX_BYTES, DeregisterInstance, RegisterAgent
from contracts.topology import agent_of_key, registration_key
from services.domain.announcement import Announcement, Duplicate, Outcome, Rejected
from services.domain.registration_policy import decide, effective_time
from services.domain.state import (
    AgentSnapshot,
    AgentState,
    DeploymentState,
    Event,
    Instances,
    InstanceState,
    LedgerRow,
    Precedence,
)
from services.errors import KeyMismatch, LostRace, Malformed, MessageTooLarge, PodiumError
from services.registration.parked import Envelope, Refusal, park
from services.settings import Settings
from services.storage import statements
from services.storage.store import (
    load_departed,
    load_deployments,
    load_facts,
    load_instances,
    lock_living,
    save,
    save_departed,
)

# Agent name, deployment id and instance id.
InstanceKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message that is refused as it is: it is not valid, its routing key does not match, or it is not signed."""

    error: PodiumError
    message_id: UUID | None = None
    name: str | None = None
    deployment_id: str | None = None
    instance_id: None = None
    authentic: bool = True
    """False: anybody may have sent it, so it must not use up the message id, which a pod may use for its own."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message. `envelope` is set if it came from the queue: a refused message is parked in it."""

    content: Announcement | Unreadable
    envelope: Envelope | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """The outcome of one message, and the agent after it; `state` is None if the message was unreadable."""

    outcome: Outcome
    state: AgentSnapshot | None = None


def read_message(envelope: Envelope, *, traceparent: str | None = None) -> Incoming:
    """The announcement in a message from the queue, or `Unreadable` if it is not valid; raises no exception."""
    name_in_key = agent_of_key(envelope.routing_key)
    if len(envelope.body) > REGISTRATION_MAX_BYTES:
        too_large = MessageTooLarge(f"The message is larger than {REGISTRATION_MAX_BYTES} bytes: shorten it.")
        return Incoming(Unreadable(too_large, name=name_in_key), envelope)
    try:
        request = _parsed(envelope.body)
    except ValidationError as exc:
        unreadable = Unreadable(Malformed(_first_problem(exc)), _message_id(envelope.body), name_in_key)
        return Incoming(unreadable, envelope)
    if name_in_key != request.name:
        mismatch = KeyMismatch(
            f"The routing key {envelope.routing_key!r} does not name the agent {request.name!r}: "
            f"publish with the key '{registration_key(request.name)}'."
        )
        return Incoming(Unreadable(mismatch, request.message_id, name_in_key), envelope)
    return Incoming(Announcement(request, request.message_id, request.registered_at, traceparent), envelope)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the settings say about registrations.

    With `requires_probe`, what is registered becomes Ready only after it has answered a probe of the janitor.
    """

    requires_probe: bool = False
    instances_max: int = 100
    """How many instances a deployment may have."""

    @classmethod
    def of(cls, settings: Settings) -> "Terms":
        """The terms that these settings say."""
        return cls(settings.ready_requires_probe, settings.instances_per_deployment)


async def register_batch(session: AsyncSession, batch: Sequence[Incoming], *, terms: Terms = Terms()) -> list[Decided]:
    """Decide the messages in the given order; returns the outcome of each.

    Raises `LostRace` if another transaction created or deleted one of the agents or deployments meanwhile: run this
    one again. Others see the effects once the transaction is committed.
    """
    names = sorted({announcement.name for announcement in _announcements(batch)})
    inserted = await _insert_missing(session, names)
    agents = await lock_living(session, names)
    if len(agents) < len(names):
        raise LostRace
    return await _decide(session, batch, _Locked(agents, inserted), terms)


async def register_unlocked(
    session: AsyncSession, batch: Sequence[Incoming], *, terms: Terms = Terms()
) -> list[Decided | None]:
    """Like `register_batch`, but does not wait for locked agents; returns None for each of their messages.

    Still waits for a transaction that is inserting an agent of the same name, up to the session's lock timeout; then
    the database's error becomes `Busy`, and nothing is decided.
    """
    names = sorted({announcement.name for announcement in _announcements(batch)})
    inserted = await _insert_missing(session, names)
    agents = await lock_living(session, names, skip_locked=True)
    ours = [not isinstance(incoming.content, Announcement) or incoming.content.name in agents for incoming in batch]
    decided = iter(await _decide(session, list(compress(batch, ours)), _Locked(agents, inserted), terms))
    return [next(decided) if is_ours else None for is_ours in ours]


@dataclass(frozen=True, slots=True)
class _Locked:
    """The locked agents by name, and the ids of those that this transaction has inserted."""

    agents: dict[str, AgentState]
    inserted: set[UUID]


async def _insert_missing(session: AsyncSession, names: list[str]) -> set[UUID]:
    return set((await session.scalars(statements.INSERT_AGENTS, {"names": names})).all()) if names else set()


def _announcements(batch: Sequence[Incoming]) -> list[Announcement]:
    return [incoming.content for incoming in batch if isinstance(incoming.content, Announcement)]


async def _decide(session: AsyncSession, batch: Sequence[Incoming], locked: _Locked, terms: Terms) -> list[Decided]:
    agents = locked.agents
    ids = [incoming.content.message_id for incoming in batch if incoming.content.message_id is not None]
    known = set((await session.scalars(statements.KNOWN_MESSAGES, {"ids": ids})).all()) if ids else set()
    fold = await _load(session, agents, _announcements(batch), set(known), terms)
    decided = [fold.decide(incoming) for incoming in batch]
    empty = [agent.id for agent in fold.agents() if agent.id in locked.inserted and agent.event_seq == 0]
    await save(
        session,
        agents=[(agents[agent.name], agent) for agent in fold.agents()],
        deployments=[(fold.loaded.get(each.id), each) for each in fold.deployments.values()],
        ledger=fold.ledger(),
        events=fold.events(),
        instances=(fold.loaded_instances, fold.instances),
    )
    await save_departed(session, fold.gone)
    await _record(session, batch, decided, known)
    if empty:
        await session.execute(statements.DELETE_EMPTY_AGENTS, {"ids": empty})
    return decided


@dataclass(slots=True)
class _Fold:
    """The state of the batch so far; each message is applied to the state that the previous ones left."""

    states: dict[str, AgentSnapshot]
    loaded: dict[str, DeploymentState]
    deployments: dict[str, DeploymentState]
    known: set[UUID]
    loaded_instances: Instances = field(default_factory=dict)
    instances: dict[str, Mapping[str, InstanceState]] = field(default_factory=dict)
    departed: dict[InstanceKey, Precedence] = field(default_factory=dict)
    gone: dict[InstanceKey, Precedence] = field(default_factory=dict)
    """The instances that departed in this batch."""

    def decide(self, incoming: Incoming) -> Decided:
        """Apply the next message."""
        content = incoming.content
        if isinstance(content, Unreadable):
            if (used := _used_id(content)) is not None:
                self.known.add(used)
            return Decided(Rejected(content.error))
        state = self.states[content.name]
        ids = (content.deployment_id, state.agent.production_deployment_id)
        deployments = {id_: self.deployments[id_] for id_ in ids if id_ is not None and id_ in self.deployments}
        state = replace(state, deployments=deployments, traceparent=content.traceparent)
        if content.instance_id is not None or content.deployment_id in self.instances:
            return self._decide_instance(content, state)
        state, outcome = decide(state, content, known=content.message_id in self.known)
        self.known.add(content.message_id)
        self.deployments.update(state.deployments)
        self.states[content.name] = state
        return Decided(outcome, state)

    def _decide_instance(self, content: Announcement, state: AgentSnapshot) -> Decided:
        """Apply a message of one of several pods of a deployment."""
        deployment_id, instance_id = content.deployment_id or "", content.instance_id or ""
        key = (content.name, deployment_id, instance_id)
        own = self.instances.get(deployment_id)
        before = self.departed.get(key)
        state = replace(
            state,
            instances={} if own is None else {deployment_id: own},
            departed={} if before is None else {(deployment_id, instance_id): before},
        )
        state, outcome = decide(state, content, known=content.message_id in self.known)
        self.known.add(content.message_id)
        self.deployments.update(state.deployments)
        self.instances.update(state.instances)
        after = state.departed.get((deployment_id, instance_id))
        if after is not None and after != before:
            self.departed[key] = self.gone[key] = after
        self.states[content.name] = replace(state, instances={}, departed={})
        return Decided(outcome, state)

    def agents(self) -> list[AgentState]:
        return [state.agent for state in self.states.values()]

    def ledger(self) -> list[LedgerRow]:
        return [row for state in self.states.values() for row in state.ledger]

    def events(self) -> list[Event]:
        return [event for state in self.states.values() for event in state.events]


async def _load(
    session: AsyncSession,
    agents: dict[str, AgentState],
    announcements: list[Announcement],
    known: set[UUID],
    terms: Terms,
) -> _Fold:
    if not agents:
        return _Fold({}, {}, {}, known)
    facts = await load_facts(session, [agent.id for agent in agents.values()])
    ids = {agent.production_deployment_id for agent in agents.values()}
    ids |= {announcement.deployment_id for announcement in announcements}
    deployments = await load_deployments(session, {id_ for id_ in ids if id_ is not None})
    states = {
        name: AgentSnapshot(
            agent=agent,
            now=facts[agent.id].now,
            last_cutover_at=facts[agent.id].last_cutover_at,
            name_deleted_at=facts[agent.id].name_deleted_at,
            ready_requires_probe=terms.requires_probe,
            instances_max=terms.instances_max,
        )
        for name, agent in agents.items()
    }
    instances = await load_instances(session, deployments.values())
    keys = {
        (each.name, each.deployment_id, each.instance_id or "")
        for each in announcements
        if each.deployment_id is not None and (each.instance_id is not None or each.deployment_id in instances)
    }
    departed = await load_departed(session, keys)
    return _Fold(states, deployments, dict(deployments), known, instances, dict(instances), departed)


async def _record(
    session: AsyncSession, batch: Sequence[Incoming], decided: Sequence[Decided], known: set[UUID]
) -> None:
    """Write first decisions to the inbox, and park the refused messages."""
    entries: dict[UUID, dict[str, object]] = {}
    refusals: list[Refusal] = []
    for position, (incoming, result) in enumerate(zip(batch, decided, strict=True)):
        content = incoming.content
        if isinstance(result.outcome, Duplicate):
            continue
        used = _used_id(content)
        if used is not None and used not in known:
            entries.setdefault(used, {"position": position, **_entry(content, result)})
        if isinstance(result.outcome, Rejected) and incoming.envelope is not None:
            refusals.append(_refusal(content, incoming.envelope, result.outcome))
    if entries:
        rows = statements.as_json(list(entries.values()))
        inserted = await session.execute(statements.INSERT_REGISTRATIONS, {"rows": rows})
        if inserted.rowcount < len(entries):  # type: ignore[attr-defined]  # a cursor result, since it inserts
            raise LostRace
    await park(session, refusals)


def _used_id(content: Announcement | Unreadable) -> UUID | None:
    """The message id that the decision uses up, so that another message with it is a duplicate; None if none."""
    if isinstance(content, Unreadable) and (content.name is None or not content.authentic):
        return None
    return content.message_id


def _entry(content: Announcement | Unreadable, decided: Decided) -> dict[str, object]:
    """The inbox row of a message."""
    outcome = decided.outcome
    registered_at = dated_at = None
    if isinstance(content, Announcement) and decided.state is not None:
        registered_at = effective_time(content.registered_at, decided.state.now)
        dated_at = content.registered_at if content.registered_at != registered_at else None
    return {
        "message_id": content.message_id,
        "agent_name": content.name,
        "deployment_id": content.deployment_id,
        "registered_at": registered_at,
        "dated_at": dated_at,
        "instance_id": content.instance_id,
        "outcome": type(outcome).__name__,
        "reason": outcome.error.message if isinstance(outcome, Rejected) else None,
    }


def _parsed(body: bytes) -> RegisterAgent | DeregisterInstance:
    """The message in a body. Raises `ValidationError`."""
    # Most bodies are announcements; those are parsed once.
    if b'"deregister"' in body and _kind_of(body) == "deregister":
        return DeregisterInstance.model_validate_json(body)
    return RegisterAgent.model_validate_json(body)


def _kind_of(body: bytes) -> object:
    try:
        content = from_json(body)
    except ValueError:
        return None
    return content.get("kind") if isinstance(content, dict) else None


def _refusal(content: Announcement | Unreadable, envelope: Envelope, outcome: Rejected) -> Refusal:
    return Refusal(envelope, outcome.error, content.message_id, content.name, content.deployment_id)


def _first_problem(error: ValidationError) -> str:
    """The first validation error, with the path of its field."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _message_id(body: bytes) -> UUID | None:
    """The message id in a body that is not a valid registration; None if there is none."""
    try:
        content = from_json(body)
        return UUID(content["message_id"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
