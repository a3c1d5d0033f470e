"""Compares the database with the sequential reference model.

    await assert_matches(session, {message.message_id: message, ...})

reads the inbox in the order in which messages were first decided, replays that order through the model in
`registrations`, and compares every agent, deployment, ledger row and event.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.messages import DeregisterInstanceRequest, RegisterAgentRequest
from services.storage.models import Agent, Deployment, Instance, OutboxEvent, Promotion, Registration
from tests.support.reference_model.registrations import (
    LEGACY,
    Address,
    Messages,
    Model,
    Observed,
    Pair,
    Service,
    Version,
    address_of,
)


def replay(rows: Sequence[Registration], messages: Messages, observed: Observed) -> Model:
    """The model after the inbox in `seq` order; raises if an outcome in the inbox differs from the model's."""
    model = Model(observed)
    for row in sorted(rows, key=lambda row: row.seq):
        message = messages.get(row.message_id)
        if message is None:
            assert row.outcome == "Rejected", f"{row.message_id} was applied, but was never sent"
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
        own_events = [event for event in events if event.agent_id == agent.id]
        _same_history([row for row in ledger if row.agent_id == agent.id], own_events, model.services[agent.name])
    deployments = {each.id: each for each in await session.scalars(select(Deployment))}
    instances: dict[str, dict[str, tuple[Address, Pair]]] = {}
    for row in await session.scalars(select(Instance)):
        assert row.status == "Ready"
        address = (row.acp_url, row.rpc_path, row.health_path, model.versions[row.deployment_id].address[3])
        pair = (row.registered_at, row.registered_message_id)
        instances.setdefault(row.deployment_id, {})[row.instance_id] = (address, pair)
    assert deployments.keys() == model.versions.keys()
    for each in deployments.values():
        _same_deployment(each, agents[each.agent_id].name, model)
        _same_instances(each, instances.get(each.id, {}), model.versions[each.id])
    _addresses_are_the_newest(rows, messages, agents.values(), deployments)
    owners = {each.id: agents[each.agent_id].name for each in deployments.values()}
    _instances_are_the_newest(rows, messages, owners, instances)
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


def _same_history(ledger: Sequence[Promotion], events: Sequence[Row[*tuple[Any, ...]]], service: Service) -> None:
    generations = [(row.generation, row.cause, _side(row, "from"), _side(row, "to")) for row in ledger]
    assert generations == service.ledger, f"ledger of {service.name}"
    emitted = [
        (
            event.type.removeprefix("podium.").removesuffix(".v1"),
            event.subject if ".agent." not in event.type else None,
            event.generation,
        )
        for event in events
    ]
    assert emitted == service.events, f"events of {service.name}"


def _same_deployment(stored: Deployment, agent_name: str, model: Model) -> None:
    version = model.versions[stored.id]
    assert stored.status == ("Ready" if version.ready else "Failed")
    actual = Version(
        agent_name,
        stored.docker_image,
        stored.registration_metadata or {},
        (stored.acp_url or "", stored.rpc_path, stored.health_path, stored.error_style),
        _pair(stored.registered_at, stored.registered_message_id) or version.pair,
        stored.first_registered_at or version.first_registered_at,
        version.instances,
        version.ready,
    )
    assert actual == version, f"deployment {stored.id}"
    assert stored.is_production == (model.services[agent_name].production == stored.id), f"flag of {stored.id}"


def _same_instances(stored: Deployment, instances: Mapping[str, tuple[Address, Pair]], version: Version) -> None:
    assert stored.has_instances == (version.instances is not None), f"mode of {stored.id}"
    expected = {
        instance_id: ((*address[:3], version.address[3]), pair)
        for instance_id, (address, pair) in (version.instances or {}).items()
    }
    assert instances == expected, f"instances of {stored.id}"


def _addresses_are_the_newest(
    rows: Sequence[Registration],
    messages: Messages,
    agents: Iterable[Agent],
    deployments: Mapping[str, Deployment],
) -> None:
    """G3: in any order, the stored address is that of the newest message that was not refused.

    Of deployments with instances, `_same_instances` compares the address of each.
    """
    newest: dict[tuple[str, str | None], tuple[Pair, Address]] = {}
    for row in rows:
        message = messages.get(row.message_id)
        if row.outcome == "Rejected" or row.registered_at is None or not isinstance(message, RegisterAgentRequest):
            continue
        entry = ((row.registered_at, row.message_id), address_of(message))
        key = (row.agent_name, row.deployment_id)
        newest[key] = max(newest.get(key, entry), entry)
    by_name = {agent.name: agent for agent in agents}
    for (name, deployment_id), (_, address) in newest.items():
        if deployment_id is None:
            assert _legacy_address(by_name[name]) == address, f"legacy address of {name}"
        elif not (each := deployments[deployment_id]).has_instances:
            stored = (each.acp_url, each.rpc_path, each.health_path, each.error_style)
            assert stored == address, f"address of {deployment_id}"


def _instances_are_the_newest(
    rows: Sequence[Registration],
    messages: Messages,
    owners: Mapping[str, str],
    instances: Mapping[str, Mapping[str, tuple[Address, Pair]]],
) -> None:
    """In any order, an instance is there unless its newest message is a goodbye, and where its newest message says."""
    newest: dict[tuple[str, str], tuple[Pair, str | None]] = {}
    for row in rows:
        message = messages.get(row.message_id)
        if row.outcome == "Rejected" or row.instance_id is None or row.deployment_id is None:
            continue
        # A goodbye for a deployment that another agent creates later has no effect on it.
        if owners.get(row.deployment_id) != row.agent_name:
            continue
        assert row.registered_at is not None
        url = message.acp_url if isinstance(message, RegisterAgentRequest) else None
        entry = ((row.registered_at, row.message_id), url)
        key = (row.deployment_id, row.instance_id)
        newest[key] = max(newest.get(key, entry), entry)
    assert any(url is None for _, url in newest.values()) == any(
        isinstance(each, DeregisterInstanceRequest) for each in messages.values()
    )
    for (deployment_id, instance_id), (_, url) in newest.items():
        stored = instances.get(deployment_id, {}).get(instance_id)
        assert (stored[0][0] if stored else None) == url, f"instance {instance_id} of {deployment_id}"


def _legacy_address(agent: Agent) -> Address | None:
    if agent.legacy_acp_url is None:
        return None
    return (agent.legacy_acp_url, agent.legacy_rpc_path, agent.legacy_health_path, agent.legacy_error_style)


def _side(row: Promotion, side: str) -> str | None:
    deployment: str | None = getattr(row, f"{side}_deployment_id")
    return deployment or (LEGACY if getattr(row, f"{side}_acp_url") else None)


def _pair(at: datetime | None, message_id: UUID | None) -> Pair | None:
    return (at, message_id) if at is not None and message_id is not None else None
