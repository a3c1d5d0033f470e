"""Reads and writes agents, deployments, ledger and outbox; every change of them uses this module.

Each statement is set-based and writes its own columns only. The agent's row is locked first, by a statement on `agents`
alone: a lock inside a join or CTE would return rows as they were before the wait.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Select, TextClause, any_, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import Text, Uuid

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
from services.errors import AgentNotFound, LostRace
from services.storage import statements
from services.storage.database import mark_events_written
from services.storage.models import Agent, Deployment, Instance, Probe, Promotion

AGENT_FIELDS = AgentState.__struct_fields__
# The health checks load the failures themselves.
DEPLOYMENT_FIELDS = [name for name in DeploymentState.__struct_fields__ if name != "failures"]
_INSTANCE_FIELDS = [name for name in InstanceState.__struct_fields__ if name != "failures"]

# Tables, not models: for a query of one row, the work of the ORM takes longer than the query.
_agents = Agent.__table__
_deployments = Deployment.__table__
_promotions = Promotion.__table__
_probes = Probe.__table__
_instances = Instance.__table__
_owners = _agents.alias("owners")
_earlier = _agents.alias("earlier")

AGENT_COLUMNS = [_agents.c[name] for name in AGENT_FIELDS]
_ELSEWHERE = {
    "agent_name": _owners.c.name.label("agent_name"),
    "probe_streak": func.coalesce(_probes.c.streak, 0).label("probe_streak"),
}
# The probes of the only pod of a deployment.
_OWN_PROBE = (_probes.c.deployment_id == _deployments.c.id) & (_probes.c.instance_id == "")
DEPLOYMENT_COLUMNS = [_ELSEWHERE[name] if name in _ELSEWHERE else _deployments.c[name] for name in DEPLOYMENT_FIELDS]

_NAMES = bindparam("names", type_=ARRAY(Text))
_AGENT_IDS = bindparam("agent_ids", type_=ARRAY(Uuid))
_DEPLOYMENT_IDS = bindparam("deployment_ids", type_=ARRAY(Text))

_LIVING = (
    select(*AGENT_COLUMNS)
    .where(_agents.c.name == any_(_NAMES), _agents.c.deleted_at.is_(None))
    .order_by(_agents.c.id)
    .with_for_update(key_share=True)
)
_LIVING_UNLOCKED = _LIVING.with_for_update(key_share=True, skip_locked=True)
_UNCLAIMED = (
    select(*AGENT_COLUMNS)
    .where(_agents.c.id == any_(_AGENT_IDS))
    .order_by(_agents.c.id)
    .with_for_update(key_share=True, skip_locked=True)
)
_ONE = select(*AGENT_COLUMNS).where(_agents.c.id == bindparam("agent_id")).with_for_update(key_share=True)
_LAST_CUTOVER = (_promotions.c.agent_id == _agents.c.id) & (_promotions.c.generation == _agents.c.generation)
_FACTS = (
    select(
        _agents.c.id,
        func.clock_timestamp().label("now"),
        _promotions.c.at.label("last_cutover_at"),
        select(func.max(_earlier.c.deleted_at))
        .where(_earlier.c.name == _agents.c.name, _earlier.c.deleted_at.is_not(None))
        .scalar_subquery()
        .label("name_deleted_at"),
    )
    .select_from(_agents.outerjoin(_promotions, _LAST_CUTOVER))
    .where(_agents.c.id == any_(_AGENT_IDS))
)
_FACTS_AND_NAMED = (
    select(func.clock_timestamp().label("now"), _promotions.c.at.label("last_cutover_at"), *DEPLOYMENT_COLUMNS)
    .select_from(
        _agents.outerjoin(_promotions, _LAST_CUTOVER)
        .outerjoin(_deployments, _deployments.c.id == any_(_DEPLOYMENT_IDS))
        .outerjoin(_owners, _owners.c.id == _deployments.c.agent_id)
        .outerjoin(_probes, _OWN_PROBE)
    )
    .where(_agents.c.id == bindparam("agent_id"))
)
# The generation of the deployment's agent, for queries that extend DEPLOYMENTS.
OWNER_GENERATION = _owners.c.generation
DEPLOYMENTS = select(*DEPLOYMENT_COLUMNS).select_from(
    _deployments.join(_owners, _owners.c.id == _deployments.c.agent_id).outerjoin(_probes, _OWN_PROBE)
)
_NAMED = DEPLOYMENTS.where(_deployments.c.id == any_(_DEPLOYMENT_IDS))

_INSTANCES = (
    select(
        *(
            func.coalesce(_probes.c.streak, 0) if name == "probe_streak" else _instances.c[name]
            for name in _INSTANCE_FIELDS
        )
    )
    .select_from(
        _instances.outerjoin(
            _probes,
            (_probes.c.deployment_id == _instances.c.deployment_id)
            & (_probes.c.instance_id == _instances.c.instance_id),
        )
    )
    .where(_instances.c.deployment_id == any_(_DEPLOYMENT_IDS))
    .order_by(_instances.c.deployment_id, _instances.c.instance_id)
)

_announced = attrgetter(*statements.ANNOUNCED_COLUMNS)
serving_columns = attrgetter(*statements.SERVING_COLUMNS)
_described = attrgetter(*statements.DESCRIBED_COLUMNS)
_stored_instance = attrgetter(*statements.INSTANCE_COLUMNS)


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about an agent that its row does not hold, read after the lock."""

    now: datetime
    last_cutover_at: datetime | None
    name_deleted_at: datetime | None


async def lock_living(
    session: AsyncSession, names: Sequence[str], *, skip_locked: bool = False
) -> dict[str, AgentState]:
    """The agents of these names that are not deleted, locked in id order until the transaction ends.

    With `skip_locked`, does not wait, and leaves out agents that another transaction has locked.
    """
    if not names:
        return {}
    query = _LIVING_UNLOCKED if skip_locked else _LIVING
    return {agent.name: agent for agent in await _read_agents(session, query, names=list(names))}


async def lock_agent(session: AsyncSession, agent_id: UUID) -> AgentState:
    """The agent, deleted or not, locked until the transaction ends. Raises `AgentNotFound`."""
    agents = await _read_agents(session, _ONE, agent_id=agent_id)
    if not agents:
        raise AgentNotFound
    return agents[0]


async def lock_unclaimed(session: AsyncSession, agent_ids: Iterable[UUID]) -> dict[UUID, AgentState]:
    """Those of these agents that no other transaction has locked, locked until the transaction ends; does not wait."""
    agents = await _read_agents(session, _UNCLAIMED, agent_ids=sorted(set(agent_ids)))
    return {agent.id: agent for agent in agents}


async def load_facts(session: AsyncSession, agent_ids: Iterable[UUID]) -> dict[UUID, Facts]:
    """Facts by agent id. Call it after the lock, because they include the time."""
    rows = await session.execute(_FACTS, {"agent_ids": list(agent_ids)})
    return {row.id: Facts(row.now, row.last_cutover_at, row.name_deleted_at) for row in rows.all()}


async def load_deployments(session: AsyncSession, ids: Iterable[str]) -> dict[str, DeploymentState]:
    """Deployments by id, of any agent."""
    rows = await session.execute(_NAMED, {"deployment_ids": sorted(set(ids))})
    return {each.id: each for each in map(_deployment, rows.all())}


async def load_instances(session: AsyncSession, deployments: Iterable[DeploymentState]) -> Instances:
    """The instances of those of these deployments that have any. Call it after the lock of their agents."""
    ids = sorted({each.id for each in deployments if each.has_instances})
    loaded: dict[str, dict[str, InstanceState]] = {id_: {} for id_ in ids}
    if ids:
        for row in (await session.execute(_INSTANCES, {"deployment_ids": ids})).all():
            instance = InstanceState(**dict(zip(_INSTANCE_FIELDS, row, strict=True)))
            loaded[instance.deployment_id][instance.instance_id] = instance
    return loaded


async def load_departed(
    session: AsyncSession, keys: Collection[tuple[str, str, str]]
) -> dict[tuple[str, str, str], Precedence]:
    """Of these instances (agent name, deployment and instance id) those that are gone, and since which message."""
    if not keys:
        return {}
    names = ("agent_name", "deployment_id", "instance_id")
    rows = await session.execute(
        statements.DEPARTED, {"rows": statements.as_json([dict(zip(names, key, strict=True)) for key in sorted(keys)])}
    )
    return {
        (row.agent_name, row.deployment_id, row.instance_id): (row.registered_at, row.message_id) for row in rows.all()
    }


async def lock_state(session: AsyncSession, agent_id: UUID, *deployment_ids: str) -> AgentSnapshot:
    """The agent, locked, with its production deployment and the given ones. Raises `AgentNotFound`."""
    agent = await lock_agent(session, agent_id)
    pointer = agent.production_deployment_id
    ids = [*deployment_ids, pointer] if pointer is not None else list(deployment_ids)
    rows = (await session.execute(_FACTS_AND_NAMED, {"agent_id": agent_id, "deployment_ids": ids})).all()
    deployments = {each.id: each for each in (_deployment(row[2:]) for row in rows if row.id is not None)}
    return AgentSnapshot(
        agent=agent,
        deployments=deployments,
        instances=await load_instances(session, deployments.values()),
        now=rows[0].now,
        last_cutover_at=rows[0].last_cutover_at,
    )


async def save_state(session: AsyncSession, before: AgentSnapshot, after: AgentSnapshot) -> None:
    """Write the changes between two snapshots of an agent; others see them once the transaction is committed."""
    await save(
        session,
        agents=[(before.agent, after.agent)],
        deployments=[(before.deployments.get(each.id), each) for each in after.deployments.values()],
        ledger=after.ledger,
        events=after.events,
        instances=(before.instances, after.instances),
    )


async def save(
    session: AsyncSession,
    *,
    agents: Iterable[tuple[AgentState, AgentState]],
    deployments: Iterable[tuple[DeploymentState | None, DeploymentState]],
    ledger: Iterable[LedgerRow],
    events: Iterable[Event],
    instances: tuple[Instances, Instances] = ({}, {}),
) -> None:
    """Write the changes between each (before, after) pair, with one statement per table and purpose.

    `instances` are those of all deployments that have any, before and after.

    Raises `LostRace` if another transaction created one of the new deployments meanwhile. Others see the changes once
    the transaction is committed.
    """
    changed_agents = [(before, after) for before, after in agents if before != after]
    deployments = list(deployments)
    changed = sorted(((b, a) for b, a in deployments if b != a), key=lambda pair: pair[1].id)
    new = [after for before, after in changed if before is None]
    known = [(before, after) for before, after in changed if before is not None]
    await _write(session, statements.DEMOTE, [a for b, a in known if b.is_production and not a.is_production])
    if new and await _write(session, statements.INSERT_DEPLOYMENTS, new) < len(new):
        raise LostRace
    await _write(session, statements.UPDATE_DEPLOYMENTS, [a for b, a in known if _announced(b) != _announced(a)])
    announced = [
        _schedule_row(a) for b, a in known if a.registered_message_id != b.registered_message_id and not a.has_instances
    ]
    announced += await _save_instances(session, *instances, {a.id: a.is_production for _, a in deployments})
    await _write(session, statements.SCHEDULE_PROBES, announced)
    await _write(
        session, statements.UPDATE_AGENTS_DESCRIBED, [a for b, a in changed_agents if _described(b) != _described(a)]
    )
    change = {
        "deployments": [a for b, a in known if a.promoted_at != b.promoted_at],
        "agents": [a for b, a in changed_agents if serving_columns(b) != serving_columns(a)],
        "ledger": [ledger_row(entry) for entry in ledger],
        "events": [outbox_row(event) for event in events],
    }
    if any(change.values()):
        await session.execute(
            statements.CHANGE_SERVING, {name: statements.as_json(rows) for name, rows in change.items()}
        )
    if change["events"]:
        mark_events_written(session)


async def _read_agents(session: AsyncSession, query: Select[Any], **parameters: object) -> list[AgentState]:
    rows = await session.execute(query, parameters)
    return [AgentState(**dict(zip(AGENT_FIELDS, row, strict=True))) for row in rows.all()]


def _deployment(columns: Sequence[Any]) -> DeploymentState:
    return DeploymentState(**dict(zip(DEPLOYMENT_FIELDS, columns, strict=True)))


async def _write(session: AsyncSession, statement: TextClause, rows: Sequence[object]) -> int:
    """Run the statement if there are rows; returns how many rows it wrote."""
    if not rows:
        return 0
    result = await session.execute(statement, {"rows": statements.as_json(rows)})
    return int(result.rowcount)  # type: ignore[attr-defined]  # a cursor result, since the statement writes


async def _save_instances(
    session: AsyncSession, before: Instances, after: Instances, is_production: Mapping[str, bool]
) -> list[dict[str, object]]:
    """Write the instances that have changed; returns the schedule of those that have announced themselves."""
    if before == after:
        return []
    earlier, now = _flat(before), _flat(after)
    gone = [{"deployment_id": key[0], "instance_id": key[1]} for key in sorted(earlier.keys() - now.keys())]
    changed = [
        each
        for key, each in now.items()
        if (known := earlier.get(key)) is None or _stored_instance(known) != _stored_instance(each)
    ]
    await _write(session, statements.REMOVE_INSTANCES, gone)
    await _write(session, statements.SAVE_INSTANCES, changed)
    return [
        {
            "id": each.deployment_id,
            "instance_id": each.instance_id,
            "is_production": is_production.get(each.deployment_id, False),
            "probe_streak": each.probe_streak,
        }
        for each in changed
        if (known := earlier.get((each.deployment_id, each.instance_id))) is None or known.newest != each.newest
    ]


def _flat(instances: Instances) -> dict[tuple[str, str], InstanceState]:
    return {(id_, each.instance_id): each for id_, own in instances.items() for each in own.values()}


async def save_departed(session: AsyncSession, departed: Mapping[tuple[str, str, str], Precedence]) -> None:
    """Remember that these instances (agent name, deployment and instance id) are gone, since which message."""
    names = ("agent_name", "deployment_id", "instance_id", "registered_at", "message_id")
    rows = [dict(zip(names, (*key, *at), strict=True)) for key, at in departed.items()]
    await _write(session, statements.SAVE_DEPARTED, rows)


def _schedule_row(deployment: DeploymentState) -> dict[str, object]:
    return {
        "id": deployment.id,
        "instance_id": "",
        "is_production": deployment.is_production,
        "probe_streak": deployment.probe_streak,
    }


def ledger_row(entry: LedgerRow) -> dict[str, object]:
    """The columns of a row of the ledger."""
    sides = {"from": entry.before, "to": entry.after}
    snapshots = {
        f"{side}_{name}": getattr(serving, name) if serving else None
        for side, serving in sides.items()
        for name in ("deployment_id", "acp_url", "docker_image")
    }
    return {
        "agent_id": entry.agent_id,
        "generation": entry.generation,
        "cause": entry.cause,
        "actor": entry.actor,
        "reason": entry.reason,
        "restored": entry.restored,
        "at": entry.at,
        "request_id": entry.request_id,
        "on_behalf_of": entry.on_behalf_of,
        **snapshots,
    }


def outbox_row(event: Event) -> dict[str, object]:
    """The columns of a row of the outbox, with a new event id."""
    return {
        "event_id": uuid4(),
        "type": event.type,
        "agent_id": event.agent_id,
        "agent_name": event.agent_name,
        "subject": event.subject,
        "sequence": event.sequence,
        "generation": event.generation,
        "payload": event.data,
        "traceparent": event.traceparent,
    }
