"""Changes that are decided before anything is locked, and written only if nothing that was read has changed.

One statement reads agents and deployments. Their change is decided, and a second statement, a transaction by itself,
locks these rows without waiting, compares the version of each one (`xmin`) with the one that was read, and writes what
was decided about those agents of which every row is as it was. It writes nothing about the others.

So a decision is as good as one under the lock, since nothing has changed between the two. Whatever a decision can
depend on changes one of the rows: a deployment that appears, disappears or changes its status is an event, which
changes its agent's row. A pod that announces a new address without an event changes the row of its deployment. The
ledger grows only with the generation in its agent's row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from services.domain.state import AgentSnapshot, AgentState, DeploymentState
from services.storage.driver import Row
from services.storage.statements import (
    LEDGER_COLUMNS,
    OUTBOX_COLUMNS,
    SERVING_COLUMNS,
    as_json,
    assignments,
    names,
    types,
)
from services.storage.store import AGENT_FIELDS, DEPLOYMENT_FIELDS, ledger_row, outbox_row, serving_columns

# The time of a change is read with its rows; the statement that writes it must follow soon.
SOON = timedelta(milliseconds=500)

# Read elsewhere, or not at all: no decision here depends on probes.
_ELSEWHERE = {"agent_name": "agents.name", "probe_streak": "0"}
_AGENT = names(f"agents.{name}" for name in AGENT_FIELDS)
_DEPLOYMENT = names(_ELSEWHERE.get(name, f"deployments.{name}") for name in DEPLOYMENT_FIELDS)

# $1, $2 and $3: agents, their deployments (or null), and for what each is read. `further` adds rows of these columns
# and a number; `value` is JSON that is read for each row besides, and may read `pair`. One row for each whose agent
# exists, and one for each agent's deployment in production. With a condition on a deployment's agent, a plan might read
# all deployments of an agent.
READ = f"""
SELECT {_AGENT}, agents.xmin::text, clock_timestamp(),
    (SELECT at FROM promotions WHERE agent_id = agents.id ORDER BY generation DESC LIMIT 1),
    {_DEPLOYMENT}, deployments.xmin::text, pair.deployment_id, pair.purpose, {{value}}
FROM (
    SELECT agent_id, deployment_id, purpose, NULL::bigint AS number
    FROM unnest($1::uuid[], $2::text[], $3::text[]) AS wanted(agent_id, deployment_id, purpose)
    UNION
    SELECT id, production_deployment_id, 'serves', NULL FROM agents WHERE id = ANY($1::uuid[])
    UNION ALL
    {{further}}
) AS pair
JOIN agents ON agents.id = pair.agent_id
LEFT JOIN deployments ON deployments.id = pair.deployment_id
"""  # noqa: S608 - composed of constants

# What can serve, after the change.
_SERVED_COLUMNS = {
    "is_production": "boolean",
    "promoted_at": "timestamptz",
    "draining_since": "timestamptz",
    "drained_at": "timestamptz",
}
_served = assignments(_SERVED_COLUMNS, "r")

# $1: one row for each agent, with its deployments, ledger rows and events inside: in arrays of their own, they would be
# compared with each agent. `changes` is false for what is compared only.
# `compared` is apart from `held`, which copies whole rows of what it joins with what it locks.
# Deployments are locked and compared before any is changed, and demoted before any is promoted: `promoted` needs the
# rows of `demoted`. Otherwise the partial unique index of production would refuse some of them.
WRITE = f"""
WITH wanted AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS r(
        id uuid, version xid, read_at timestamptz, changes boolean, {types(SERVING_COLUMNS)}, updated_at timestamptz,
        deployments jsonb, ledger jsonb, events jsonb)
), locked AS MATERIALIZED (
    SELECT wanted.* FROM wanted JOIN agents AS a ON a.id = wanted.id
    WHERE a.xmin = wanted.version
    ORDER BY a.id
    FOR NO KEY UPDATE OF a SKIP LOCKED
), compared AS MATERIALIZED (
    SELECT locked.id AS agent_id, r.id, r.version
    FROM locked CROSS JOIN jsonb_to_recordset(locked.deployments) AS r(id text, version xid)
), held AS MATERIALIZED (
    SELECT r.agent_id FROM compared AS r JOIN deployments AS d ON d.id = r.id
    WHERE d.xmin = r.version
    ORDER BY d.id
    FOR NO KEY UPDATE OF d SKIP LOCKED
), counted AS MATERIALIZED (
    SELECT agent_id, count(*) AS deployments FROM held GROUP BY agent_id
), unchanged AS MATERIALIZED (
    SELECT locked.* FROM locked LEFT JOIN counted ON counted.agent_id = locked.id
    WHERE jsonb_array_length(locked.deployments) = coalesce(counted.deployments, 0)
        AND clock_timestamp() <= locked.read_at + interval '{SOON.total_seconds()} s'
), changed AS MATERIALIZED (
    SELECT r.*
    FROM unchanged CROSS JOIN jsonb_to_recordset(unchanged.deployments) AS r(
        id text, changes boolean, {types(_SERVED_COLUMNS)})
    WHERE r.changes
), demoted AS (
    UPDATE deployments AS d SET
    {_served}
    FROM changed AS r
    WHERE d.id = r.id AND NOT r.is_production
    RETURNING d.id
), promoted AS (
    UPDATE deployments AS d SET
    {_served}
    FROM changed AS r
    WHERE d.id = r.id AND r.is_production AND (SELECT count(*) FROM demoted) >= 0
    RETURNING d.id
), probed AS (
    UPDATE probes AS p SET is_production = true FROM promoted WHERE p.deployment_id = promoted.id
), serving AS (
    UPDATE agents AS a SET
    {assignments(SERVING_COLUMNS, "r")},
    updated_at = r.updated_at
    FROM unchanged AS r WHERE a.id = r.id AND r.changes
), ledger AS (
    INSERT INTO promotions ({names(LEDGER_COLUMNS)})
    SELECT {names(f"r.{name}" for name in LEDGER_COLUMNS)}
    FROM unchanged CROSS JOIN jsonb_to_recordset(unchanged.ledger) AS r({types(LEDGER_COLUMNS)})
), events AS (
    INSERT INTO outbox ({names(OUTBOX_COLUMNS)})
    SELECT {names(f"r.{name}" for name in OUTBOX_COLUMNS)}
    FROM unchanged CROSS JOIN jsonb_to_recordset(unchanged.events) AS r({types(OUTBOX_COLUMNS)})
    ORDER BY r.agent_id, r.sequence
)
SELECT id FROM unchanged
"""  # noqa: S608 - composed of constants


@dataclass(frozen=True, slots=True)
class Unlocked:
    """An agent with deployments of its own as one statement read them, without a lock, and the version of each row."""

    state: AgentSnapshot
    version: str
    versions: dict[str, str]
    """By deployment id."""
    values: dict[str, list[tuple[str | None, Any]]]
    """By purpose: the id of each deployment that was read for it, and the value."""


def unlocked(rows: Iterable[Row]) -> dict[UUID, Unlocked]:
    """The agents in the rows of `READ`, by id."""
    found: dict[UUID, Unlocked] = {}
    agents, deployments = len(AGENT_FIELDS), len(DEPLOYMENT_FIELDS)
    for row in rows:
        values = list(row.values())
        version, now, last_cutover_at = values[agents : agents + 3]
        known = found.get(values[0])
        if known is None:
            agent = AgentState(**dict(zip(AGENT_FIELDS, values, strict=False)))
            state = AgentSnapshot(agent=agent, now=now, last_cutover_at=last_cutover_at, deployments={})
            known = found[agent.id] = Unlocked(state, version, {}, {})
        own = values[agents + 3 :]
        if own[1] == values[0] and own[0] not in known.versions:  # a deployment of this agent
            deployment = DeploymentState(**dict(zip(DEPLOYMENT_FIELDS, own, strict=False)))
            assert isinstance(known.state.deployments, dict)
            known.state.deployments[deployment.id] = deployment
            known.versions[deployment.id] = own[deployments]
        wanted_id, purpose, value = own[deployments + 1 :]
        known.values.setdefault(purpose, []).append((wanted_id, value))
    return found


def argument(changes: Sequence[tuple[Unlocked, AgentSnapshot]]) -> str:
    """The parameter of `WRITE` for what was read of each agent, and its state after the change."""
    return as_json([_agent(before, after) for before, after in changes])


def _agent(before: Unlocked, after: AgentSnapshot) -> dict[str, object]:
    values = serving_columns(after.agent)
    return {
        "id": after.agent.id,
        "version": before.version,
        "read_at": before.state.now,
        "changes": values != serving_columns(before.state.agent),
        "updated_at": after.agent.updated_at,
        **dict(zip(SERVING_COLUMNS, values, strict=True)),
        "deployments": [_deployment(before, after, id_) for id_ in before.versions],
        "ledger": [ledger_row(entry) for entry in after.ledger],
        "events": [outbox_row(event) for event in after.events],
    }


def _deployment(before: Unlocked, after: AgentSnapshot, deployment_id: str) -> dict[str, object]:
    deployment = after.deployments[deployment_id]
    return {
        "id": deployment_id,
        "version": before.versions[deployment_id],
        "changes": deployment != before.state.deployments[deployment_id],
        **{name: getattr(deployment, name) for name in _SERVED_COLUMNS},
    }
