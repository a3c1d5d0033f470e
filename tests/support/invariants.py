"""Invariants of the whole database after any history: the guarantees, G14 above all."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.storage.models import Agent, Deployment, Instance, OutboxEvent, Promotion

PROMOTED = "podium.deployment.promoted.v1"
DEMOTED = "podium.deployment.demoted.v1"
REGISTERED = "podium.agent.registered.v1"
DELETED = "podium.agent.deleted.v1"
PURGED = "podium.deployment.purged.v1"

Row = TypeVar("Row", Deployment, Promotion, OutboxEvent)


async def assert_invariants(session: AsyncSession) -> None:
    """Raise if the pointer, the flag, the ledger and the events of any agent disagree."""
    agents = list(await session.scalars(select(Agent)))
    deployments = list(await session.scalars(select(Deployment)))
    with_rows = set(await session.scalars(select(Instance.deployment_id)))
    assert with_rows <= {each.id for each in deployments if each.has_instances}, "instances of deployments without any"
    ledger = list(await session.scalars(select(Promotion).order_by(Promotion.agent_id, Promotion.generation)))
    events = list(await session.scalars(select(OutboxEvent).order_by(OutboxEvent.id)))
    names = [agent.name for agent in agents if agent.deleted_at is None]
    assert len(names) == len(set(names)), "two agents that are not deleted share a name"
    deployments_of, ledger_of, events_of = _by_agent(deployments), _by_agent(ledger), _by_agent(events)
    for agent in agents:
        own, rows, own_events = deployments_of[agent.id], ledger_of[agent.id], events_of[agent.id]
        _pointer_and_flag_agree(agent, own)
        _numbers_have_no_gaps(agent, rows, own_events)
        _ledger_is_a_chain(agent, rows)
        _each_generation_is_announced_once(rows, own_events)
        _each_deployment_has_its_events(agent, own, own_events)
        _ledger_ends_where_the_agent_is(agent, own, rows)


def _by_agent(rows: Iterable[Row]) -> defaultdict[UUID, list[Row]]:
    found: defaultdict[UUID, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.agent_id].append(row)
    return found


def _pointer_and_flag_agree(agent: Agent, own: Sequence[Deployment]) -> None:
    flagged = [each.id for each in own if each.is_production]
    pointer = agent.production_deployment_id
    assert flagged == ([] if pointer is None else [pointer]), f"{agent.name}: pointer {pointer}, flags {flagged}"
    for each in own:
        assert not (each.is_production and each.expires_at), f"{each.id} is in production and deleted"
        reachable = each.acp_url is not None or each.purged_at is not None
        assert reachable or each.status != "Ready", f"{each.id} is Ready without an address"
        assert each.ready_at is None or each.first_registered_at is not None, f"{each.id}: Ready, but never announced"
        assert each.ready_at is not None or each.status != "Ready", f"{each.id}: Ready without ready_at"
    failed = any(each.is_production and each.status == "Failed" for each in own)
    serves = pointer is not None or agent.legacy_acp_url is not None
    status = "Deleted" if agent.deleted_at else "Failed" if failed else "Ready" if serves else "BuildOnly"
    assert agent.status == status, f"{agent.name} says {agent.status}, should say {status}"
    if agent.deleted_at is not None:
        assert all(each.expires_at for each in own), f"{agent.name} is deleted, its deployments are not"


def _numbers_have_no_gaps(agent: Agent, rows: Sequence[Promotion], events: Sequence[OutboxEvent]) -> None:
    assert [row.generation for row in rows] == list(range(1, agent.generation + 1)), f"{agent.name}: generations"
    # In outbox order: ids grow with the sequence, because the relay claims by id.
    assert [event.sequence for event in events] == list(range(1, agent.event_seq + 1)), f"{agent.name}: sequences"
    assert events, f"{agent.name} has no event"
    generations = [event.generation for event in events]
    assert generations == sorted(generations), f"{agent.name}: events out of generation order"
    assert generations[-1] == agent.generation, f"{agent.name}: the last generation was not announced"
    assert len({event.event_id for event in events}) == len(events)


def _ledger_is_a_chain(agent: Agent, rows: Sequence[Promotion]) -> None:
    if rows:
        assert rows[0].from_deployment_id is None, f"{agent.name}: something served before the first generation"
        assert rows[0].from_acp_url is None, f"{agent.name}: something served before the first generation"
    for older, newer in pairwise(rows):
        assert newer.from_deployment_id == older.to_deployment_id, f"{agent.name}: broken at {newer.generation}"
        if older.to_deployment_id is None:
            assert newer.from_acp_url == older.to_acp_url, f"{agent.name}: broken at {newer.generation}"
        assert newer.at > older.at, f"{agent.name}: generation {newer.generation} is not later than the one before"
    by_generation = {row.generation: row for row in rows}
    for row in rows:
        before, after = (row.from_deployment_id, row.from_acp_url), (row.to_deployment_id, row.to_acp_url)
        changed = row.from_deployment_id != row.to_deployment_id if row.to_deployment_id else before != after
        assert changed, f"{agent.name}: generation {row.generation} changed nothing"
        if row.restored is not None:
            assert row.cause == "rollback"
            assert by_generation[row.restored].to_deployment_id == row.to_deployment_id


def _each_generation_is_announced_once(rows: Sequence[Promotion], events: Sequence[OutboxEvent]) -> None:
    switches = [event for event in events if event.type in {PROMOTED, DEMOTED}]
    by_generation: defaultdict[int, list[OutboxEvent]] = defaultdict(list)
    for event in events:
        by_generation[event.generation].append(event)
    for row in rows:
        announcing = [event for event in by_generation[row.generation] if event.type in {PROMOTED, DEMOTED}]
        if row.to_deployment_id is None and row.from_deployment_id is None:
            assert not announcing, f"generation {row.generation} moved no deployment"
            first = by_generation[row.generation][0]
            assert first.type in {REGISTERED, DELETED}, f"generation {row.generation} was announced by {first.type}"
            assert first.payload["acp_url"] == row.to_acp_url
            continue
        assert len(announcing) == 1, f"generation {row.generation} has {len(announcing)} announcing events"
        _announces(announcing[0], row)
    moved = [row for row in rows if row.to_deployment_id or row.from_deployment_id]
    assert len(switches) == len(moved), "an event announces a generation that is not there"


def _announces(event: OutboxEvent, row: Promotion) -> None:
    said = event.payload
    expected = {"generation": row.generation, "cause": row.cause, "actor": row.actor, "reason": row.reason}
    assert {name: said[name] for name in expected} == expected
    if row.to_deployment_id is not None:
        assert event.type == PROMOTED
        assert event.subject == said["deployment_id"] == row.to_deployment_id
        assert (said["acp_url"], said["docker_image"]) == (row.to_acp_url, row.to_docker_image)
        previous = said["previous"] or {"deployment_id": None, "acp_url": None, "docker_image": None}
        assert previous == {
            "deployment_id": row.from_deployment_id,
            "acp_url": row.from_acp_url,
            "docker_image": row.from_docker_image,
        }
    else:
        assert event.type == DEMOTED
        assert event.subject == said["deployment_id"] == row.from_deployment_id
        assert said["acp_url"] == row.to_acp_url


def _each_deployment_has_its_events(agent: Agent, own: Sequence[Deployment], events: Sequence[OutboxEvent]) -> None:
    created = [event.subject for event in events if event.type == "podium.deployment.created.v1"]
    assert sorted(created) == sorted(each.id for each in own), f"{agent.name}: created events {created}"
    ready = {event.subject for event in events if event.type == "podium.deployment.ready.v1"}
    assert ready == {each.id for each in own if each.ready_at}, f"{agent.name}: ready events {ready}"
    deleted = [event.subject for event in events if event.type == "podium.deployment.deleted.v1"]
    assert len(deleted) == len(set(deleted)), f"{agent.name}: a deployment was deleted twice"
    if agent.deleted_at is None:
        assert set(deleted) == {each.id for each in own if each.expires_at}, f"{agent.name}: deleted events {deleted}"
    purged = [event.subject for event in events if event.type == PURGED]
    assert sorted(purged) == sorted(each.id for each in own if each.purged_at), f"{agent.name}: purged events {purged}"
    # Retention is the only source of events of a deleted agent.
    last = next(event.sequence for event in reversed(events) if agent.deleted_at is None or event.type != PURGED)
    deletions = [event.sequence for event in events if event.type == DELETED]
    assert deletions == ([] if agent.deleted_at is None else [last]), f"{agent.name}: agent.deleted"


def _ledger_ends_where_the_agent_is(agent: Agent, own: Sequence[Deployment], rows: Sequence[Promotion]) -> None:
    last_at = {row.to_deployment_id: row.at for row in rows}
    for each in own:
        assert each.promoted_at == last_at.get(each.id), f"{each.id}: promoted_at"
    legacy = agent.legacy_acp_url if agent.deleted_at is None else None
    if not rows:
        assert agent.production_deployment_id is None
        assert legacy is None
        return
    assert rows[-1].to_deployment_id == agent.production_deployment_id, f"{agent.name}: ledger and pointer"
    if agent.production_deployment_id is None:
        assert rows[-1].to_acp_url == legacy, f"{agent.name}: ledger and legacy address"
