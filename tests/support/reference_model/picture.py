"""The stored data as facts and times, in a form in which the database and the model can be compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services import errors
from services.storage.models import Agent, Deployment, OutboxEvent, Parked, Promotion, Registration
from tests.support.reference_model.rollback_walk import LEGACY
from tests.support.reference_model.state import Tables

ERRORS = {error.reason: name for name, error in vars(errors).items() if hasattr(error, "reason")}


@dataclass
class Picture:
    """Facts by their subject; times by agent name, of which only the order is compared."""

    facts: dict[str, Any] = field(default_factory=dict)
    times: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, about: str, facts: Mapping[str, Any]) -> None:
        """Add facts about a subject."""
        self.facts |= {f"{about}: {name}": value for name, value in facts.items()}

    def date(self, agent: str, about: str, times: Mapping[str, Any]) -> None:
        """Add times of a subject that belongs to the agents of this name."""
        present = {f"{about}: {name}": at for name, at in times.items() if at is not None}
        self.times.setdefault(agent, {}).update(present)


@dataclass(frozen=True)
class Seen:
    """A picture of the database, with its time and the ids of its agents by label."""

    picture: Picture
    clock: datetime
    agent_ids: Mapping[str, UUID]


def differences(database: Picture, model: Picture) -> list[str]:
    """The differences between both; the times of the model are numbers, of which the order is compared."""
    found = [
        f"{about}: the database has {database.facts.get(about)!r}, the model has {model.facts.get(about)!r}"
        for about in sorted(database.facts.keys() | model.facts.keys())
        if database.facts.get(about) != model.facts.get(about)
    ]
    for agent in sorted(database.times.keys() | model.times.keys()):
        found += _time_differences(database.times.get(agent, {}), model.times.get(agent, {}))
    return found


def _time_differences(database: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    found = [
        f"{about}: only one of database and model has this time" for about in sorted(database.keys() ^ model.keys())
    ]
    in_order = sorted(database.keys() & model.keys(), key=lambda about: (model[about], about))
    for earlier, later in pairwise(in_order):
        expected = "at the same time as" if model[earlier] == model[later] else "before"
        same, before = database[earlier] == database[later], database[earlier] < database[later]
        if not (same if model[earlier] == model[later] else before):
            actual = "the same time" if same else "before" if before else "after"
            found.append(f"{earlier}: should be {expected} {later}, is {actual}")
    return found


def of_model(model: Tables) -> Picture:
    """The picture of the model."""
    picture = Picture()
    for life in model.lives.values():
        picture.add(
            f"agent {life.label}",
            {
                "description": life.description,
                "image": life.image,
                "facts": life.facts,
                "legacy address": life.legacy,
                "newest message": life.newest[1] if life.newest else None,
                "production": life.production,
                "policy": life.policy,
                "paused": life.paused,
                "deleted": life.deleted_at is not None,
                "ledger": [(row.cause, row.before, row.to, row.to_url, row.restored) for row in life.ledger],
                "events": life.events,
            },
        )
        at = {"promote requested": life.promote_requested_at, "deleted": life.deleted_at}
        at |= {f"generation {generation}": row.at for generation, row in enumerate(life.ledger, 1)}
        picture.date(life.name, f"agent {life.label}", {**at, "registered": life.newest[0] if life.newest else None})
    for version in model.versions.values():
        picture.add(
            version.id,
            {
                "owner": version.owner,
                "status": version.status,
                "image": version.image,
                "facts": version.facts,
                "address": version.address,
                "newest message": version.newest[1] if version.newest else None,
                "in production": model.lives[version.owner].production == version.id,
                "deleted": version.deleted_at is not None,
            },
        )
        at = {
            "created": version.created_at,
            "status changed": version.status_since,
            "registered": version.newest[0] if version.newest else None,
            "first registered": version.first_registered_at,
            "promoted": version.promoted_at,
            "deleted": version.deleted_at,
        }
        picture.date(model.lives[version.owner].name, version.id, at)
    for message_id, (name, deployment, outcome, moment) in model.inbox.items():
        picture.facts.setdefault(f"inbox of {name}", []).append((message_id.int, deployment, outcome))
        picture.date(name, f"message {message_id.int}", {"published": moment})
    picture.facts["parked"] = model.parked
    return picture


async def of_database(session: AsyncSession) -> Seen:
    """The picture of the database."""
    picture, labels = Picture(), dict[UUID, str]()
    agents = list(await session.scalars(select(Agent).order_by(Agent.created_at)))
    lives: dict[str, int] = {}
    for agent in agents:
        lives[agent.name] = lives.get(agent.name, 0) + 1
        labels[agent.id] = f"{agent.name}#{lives[agent.name]}"
    names = {agent.id: agent.name for agent in agents}
    ledger = list(await session.scalars(select(Promotion).order_by(Promotion.generation)))
    events = list(await session.scalars(select(OutboxEvent).order_by(OutboxEvent.sequence)))
    for agent in agents:
        own = [row for row in ledger if row.agent_id == agent.id]
        _add_agent(picture, f"agent {labels[agent.id]}", agent, own)
        own_events = [_event(event) for event in events if event.agent_id == agent.id]
        picture.add(f"agent {labels[agent.id]}", {"events": own_events})
    for each in await session.scalars(select(Deployment)):
        _add_deployment(picture, each, labels[each.agent_id], names[each.agent_id])
    for row in await session.scalars(select(Registration).order_by(Registration.seq)):
        about = f"inbox of {row.agent_name}"
        picture.facts.setdefault(about, []).append((row.message_id.int, row.deployment_id, row.outcome))
        picture.date(row.agent_name, f"message {row.message_id.int}", {"published": row.registered_at})
    parked = await session.scalars(select(Parked))
    picture.facts["parked"] = {
        (row.agent_name, row.deployment_id or row.message_id, ERRORS[row.reason]): row.attempts for row in parked
    }
    clock = await session.scalar(select(func.clock_timestamp()))
    assert clock is not None
    return Seen(picture, clock, {label: agent_id for agent_id, label in labels.items()})


def _add_agent(picture: Picture, about: str, agent: Agent, ledger: list[Promotion]) -> None:
    legacy = (agent.legacy_acp_url, agent.legacy_rpc_path) if agent.legacy_acp_url else None
    picture.add(
        about,
        {
            "description": agent.description,
            "image": agent.docker_image,
            "facts": agent.registration_metadata or {},
            "legacy address": legacy,
            "newest message": agent.registered_message_id,
            "production": agent.production_deployment_id,
            "policy": agent.auto_promote,
            "paused": agent.auto_promote_paused,
            "deleted": agent.deleted_at is not None,
            "ledger": [
                (row.cause, _side(row, "from"), _side(row, "to"), row.to_acp_url, row.restored) for row in ledger
            ],
        },
    )
    at = {"promote requested": agent.promote_requested_at, "deleted": agent.deleted_at}
    at |= {f"generation {row.generation}": row.at for row in ledger}
    picture.date(agent.name, about, {**at, "registered": agent.registered_at})


def _add_deployment(picture: Picture, each: Deployment, label: str, name: str) -> None:
    picture.add(
        each.id,
        {
            "owner": label,
            "status": each.status,
            "image": each.docker_image,
            "facts": each.registration_metadata or {},
            "address": (each.acp_url, each.rpc_path) if each.acp_url else None,
            "newest message": each.registered_message_id,
            "in production": each.is_production,
            "deleted": each.expires_at is not None,
        },
    )
    at = {
        "created": each.created_at,
        "status changed": each.status_changed_at,
        "registered": each.registered_at,
        "first registered": each.first_registered_at,
        "promoted": each.promoted_at,
        "deleted": each.expires_at,
    }
    picture.date(name, each.id, at)


def _event(event: OutboxEvent) -> tuple[str, str | None, int]:
    kind = event.type.removeprefix("podium.").removesuffix(".v1")
    return kind, event.subject if kind.startswith("deployment.") else None, event.generation


def _side(row: Promotion, side: str) -> str | None:
    deployment: str | None = getattr(row, f"{side}_deployment_id")
    return deployment or (LEGACY if getattr(row, f"{side}_acp_url") else None)
