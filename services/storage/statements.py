r"""The writing statements. Each takes its rows as one JSON array.

Each column list stands once, as column -> SQL type; the statements are composed from the lists at import. To run one
in psql, print it with `python -c "from services.storage import statements; print(statements.INSERT_DEPLOYMENTS)"` and
set its parameters, for example `\set rows '[...]'` with `:'rows'` in place of `:rows`.
"""

from collections.abc import Iterable, Mapping

import msgspec
from pydantic import BaseModel
from pydantic_core import to_json
from sqlalchemy import text


def _raw_json(model: object) -> msgspec.Raw:
    if isinstance(model, BaseModel):
        return msgspec.Raw(to_json(model))
    raise NotImplementedError(f"Objects of type {type(model)} are not stored as JSON.")


_encoder = msgspec.json.Encoder(enc_hook=_raw_json)


def as_json(rows: object) -> str:
    """The rows of a statement: dicts or states, with the data of events."""
    return _encoder.encode(rows).decode()


def names(columns: Iterable[str]) -> str:
    """`a, b`."""
    return ", ".join(columns)


def types(columns: Mapping[str, str]) -> str:
    """`a text, b uuid`: the columns of a record set."""
    return ", ".join(f"{name} {sql_type}" for name, sql_type in columns.items())


def assignments(columns: Iterable[str], source: str = "r") -> str:
    """`a = r.a, b = r.b`, one on a line."""
    return ",\n    ".join(f"{name} = {source}.{name}" for name in columns)


# The columns of a deployment that a registration or a verdict may change.
ANNOUNCED_COLUMNS: dict[str, str] = {
    "docker_image": "text",
    "registration_metadata": "jsonb",
    "status": "text",
    "status_reason": "text",
    "status_changed_at": "timestamptz",
    "acp_url": "text",
    "rpc_path": "text",
    "health_path": "text",
    "error_style": "text",
    "registered_at": "timestamptz",
    "registered_message_id": "uuid",
    "first_registered_at": "timestamptz",
    "ready_at": "timestamptz",
    "has_instances": "boolean",
}
# The columns that a new deployment is inserted with.
_NEW_DEPLOYMENT_COLUMNS: dict[str, str] = {
    "id": "text",
    "agent_id": "uuid",
    "docker_image": "text",
    "registration_metadata": "jsonb",
    "status": "text",
    "status_reason": "text",
    "status_changed_at": "timestamptz",
    "acp_url": "text",
    "rpc_path": "text",
    "health_path": "text",
    "error_style": "text",
    "sgp_deploy_id": "text",
    "helm_release_name": "text",
    "registered_at": "timestamptz",
    "registered_message_id": "uuid",
    "first_registered_at": "timestamptz",
    "created_at": "timestamptz",
    "ready_at": "timestamptz",
    "has_instances": "boolean",
    "is_production": "boolean",
    "promoted_at": "timestamptz",
}
# The columns of an agent that a change of what serves it, or an event, may change.
SERVING_COLUMNS: dict[str, str] = {
    "production_deployment_id": "text",
    "generation": "bigint",
    "event_seq": "bigint",
    "status": "text",
    "status_reason": "text",
    "auto_promote_paused": "boolean",
    "promote_requested_at": "timestamptz",
    "deleted_at": "timestamptz",
}
# The columns of an agent that its registrations and its operator's settings may change.
DESCRIBED_COLUMNS: dict[str, str] = {
    "description": "text",
    "docker_image": "text",
    "acp_type": "text",
    "agent_input_type": "text",
    "registration_metadata": "jsonb",
    "legacy_acp_url": "text",
    "legacy_rpc_path": "text",
    "legacy_health_path": "text",
    "legacy_error_style": "text",
    "registered_at": "timestamptz",
    "registered_message_id": "uuid",
    "auto_promote": "text",
    "on_failure": "text",
    "probe_interval_seconds": "double precision",
    "probe_threshold": "integer",
    "probe_timeout_seconds": "double precision",
    "affinity": "text",
    "conversation_keys": "text",
    "conversation_idle_seconds": "double precision",
    "conversation_max_age_seconds": "double precision",
    "drain_deadline_seconds": "double precision",
    "forward_authorization": "text",
    "calls_per_second": "double precision",
    "calls_in_flight": "integer",
}
# The columns of an instance that an announcement or a verdict may change.
INSTANCE_COLUMNS: dict[str, str] = {
    "acp_url": "text",
    "rpc_path": "text",
    "health_path": "text",
    "status": "text",
    "status_reason": "text",
    "status_changed_at": "timestamptz",
    "registered_at": "timestamptz",
    "registered_message_id": "uuid",
    "ready_at": "timestamptz",
}
_NEW_INSTANCE_COLUMNS: dict[str, str] = {
    "deployment_id": "text",
    "instance_id": "text",
    "agent_id": "uuid",
    "created_at": "timestamptz",
    **INSTANCE_COLUMNS,
}
LEDGER_COLUMNS: dict[str, str] = {
    "agent_id": "uuid",
    "generation": "bigint",
    "cause": "text",
    "actor": "text",
    "reason": "text",
    "restored": "bigint",
    "at": "timestamptz",
    "request_id": "text",
    "on_behalf_of": "text",
    "from_deployment_id": "text",
    "from_acp_url": "text",
    "from_docker_image": "text",
    "to_deployment_id": "text",
    "to_acp_url": "text",
    "to_docker_image": "text",
}
OUTBOX_COLUMNS: dict[str, str] = {
    "event_id": "uuid",
    "type": "text",
    "agent_id": "uuid",
    "agent_name": "text",
    "subject": "text",
    "sequence": "bigint",
    "generation": "bigint",
    "payload": "jsonb",
    "traceparent": "text",
}
_INBOX_COLUMNS: dict[str, str] = {
    "message_id": "uuid",
    "agent_name": "text",
    "deployment_id": "text",
    "registered_at": "timestamptz",
    "dated_at": "timestamptz",
    "outcome": "text",
    "reason": "text",
    "instance_id": "text",
}

INSERT_DEPLOYMENTS = text(
    f"""
INSERT INTO deployments (
    {names(_NEW_DEPLOYMENT_COLUMNS)})
SELECT
    {names(_NEW_DEPLOYMENT_COLUMNS)}
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    {types(_NEW_DEPLOYMENT_COLUMNS)})
ORDER BY id
ON CONFLICT (id) DO NOTHING
"""  # noqa: S608 - composed of the constants above
)

UPDATE_DEPLOYMENTS = text(
    f"""
UPDATE deployments AS d SET
    {assignments(ANNOUNCED_COLUMNS)}
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    id text, {types(ANNOUNCED_COLUMNS)})
WHERE d.id = r.id
"""  # noqa: S608 - composed of the constants above
)

# All under the lock of their agent, so no other transaction writes these rows.
SAVE_INSTANCES = text(
    f"""
INSERT INTO instances AS i ({names(_NEW_INSTANCE_COLUMNS)})
SELECT {names(_NEW_INSTANCE_COLUMNS)}
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    {types(_NEW_INSTANCE_COLUMNS)})
ORDER BY deployment_id, instance_id
ON CONFLICT (deployment_id, instance_id) DO UPDATE SET
    {assignments(INSTANCE_COLUMNS, "excluded")}
"""  # noqa: S608 - composed of the constants above
)

REMOVE_INSTANCES = text("""
WITH gone AS (
    SELECT deployment_id, instance_id
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(deployment_id text, instance_id text)
), probed AS (
    DELETE FROM probes AS p USING gone
    WHERE p.deployment_id = gone.deployment_id AND p.instance_id = gone.instance_id
)
DELETE FROM instances AS i USING gone
WHERE i.deployment_id = gone.deployment_id AND i.instance_id = gone.instance_id
""")

SAVE_DEPARTED = text("""
INSERT INTO departed_instances AS d (agent_name, deployment_id, instance_id, registered_at, message_id)
SELECT agent_name, deployment_id, instance_id, registered_at, message_id
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    agent_name text, deployment_id text, instance_id text, registered_at timestamptz, message_id uuid)
ORDER BY agent_name, deployment_id, instance_id
ON CONFLICT (agent_name, deployment_id, instance_id) DO UPDATE
SET registered_at = excluded.registered_at, message_id = excluded.message_id, departed_at = excluded.departed_at
""")

DEPARTED = text("""
SELECT d.agent_name, d.deployment_id, d.instance_id, d.registered_at, d.message_id
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(agent_name text, deployment_id text, instance_id text)
JOIN departed_instances AS d USING (agent_name, deployment_id, instance_id)
""")

# A new announcement that restarts the streak is probed at once.
SCHEDULE_PROBES = text("""
INSERT INTO probes AS p (deployment_id, instance_id, is_production, streak)
SELECT id, instance_id, is_production, probe_streak
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    id text, instance_id text, is_production boolean, probe_streak integer)
ORDER BY id, instance_id
ON CONFLICT (deployment_id, instance_id) DO UPDATE
SET due_at = excluded.due_at, streak = 0, failing_since = NULL, failed_by = NULL, confirmed = false,
    opinion_until = NULL, last_call_at = NULL
WHERE excluded.streak = 0
""")

# Runs before anything is promoted: one statement that moves the flag can violate the partial unique index half-way.
DEMOTE = text("""
UPDATE deployments AS d SET is_production = false, draining_since = r.draining_since, drained_at = NULL
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id text, draining_since timestamptz)
WHERE d.id = r.id
""")

# A change of what serves, with its ledger rows and events: one round trip, for one promote as for a whole batch.
CHANGE_SERVING = text(
    f"""
WITH promoted AS (
    UPDATE deployments AS d SET is_production = r.is_production, promoted_at = r.promoted_at,
        draining_since = NULL, drained_at = NULL
    FROM jsonb_to_recordset(CAST(:deployments AS jsonb)) AS r(id text, is_production boolean, promoted_at timestamptz)
    WHERE d.id = r.id
), probed AS (
    UPDATE probes AS p SET is_production = true
    FROM jsonb_to_recordset(CAST(:deployments AS jsonb)) AS r(id text, is_production boolean)
    WHERE p.deployment_id = r.id AND r.is_production
), serving AS (
    UPDATE agents AS a SET
        {assignments(SERVING_COLUMNS)},
        updated_at = r.updated_at
    FROM jsonb_to_recordset(CAST(:agents AS jsonb)) AS r(
        id uuid, {types(SERVING_COLUMNS)}, updated_at timestamptz)
    WHERE a.id = r.id
), ledger AS (
    INSERT INTO promotions (
        {names(LEDGER_COLUMNS)})
    SELECT
        {names(LEDGER_COLUMNS)}
    FROM jsonb_to_recordset(CAST(:ledger AS jsonb)) AS r(
        {types(LEDGER_COLUMNS)})
)
INSERT INTO outbox ({names(OUTBOX_COLUMNS)})
SELECT {names(OUTBOX_COLUMNS)}
FROM jsonb_to_recordset(CAST(:events AS jsonb)) AS r(
    {types(OUTBOX_COLUMNS)})
ORDER BY agent_id, sequence
"""  # noqa: S608 - composed of the constants above
)

UPDATE_AGENTS_DESCRIBED = text(
    f"""
UPDATE agents AS a SET
    {assignments(DESCRIBED_COLUMNS)},
    updated_at = r.updated_at
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    id uuid, {types(DESCRIBED_COLUMNS)}, updated_at timestamptz)
WHERE a.id = r.id
"""  # noqa: S608 - composed of the constants above
)

# Only missing names: `ON CONFLICT` waits for a transaction that has updated the existing row.
INSERT_AGENTS = text("""
INSERT INTO agents (name)
SELECT missing.name FROM unnest(CAST(:names AS text[])) AS missing(name)
WHERE NOT EXISTS (SELECT FROM agents AS a WHERE a.name = missing.name AND a.deleted_at IS NULL)
ORDER BY missing.name
ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING
RETURNING id
""")

DELETE_EMPTY_AGENTS = text("DELETE FROM agents WHERE id = ANY(CAST(:ids AS uuid[]))")

KNOWN_MESSAGES = text("SELECT message_id FROM registrations WHERE message_id = ANY(CAST(:ids AS uuid[]))")

INSERT_REGISTRATIONS = text(
    f"""
INSERT INTO registrations ({names(_INBOX_COLUMNS)})
SELECT {names(_INBOX_COLUMNS)}
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    position bigint, {types(_INBOX_COLUMNS)})
ORDER BY position
ON CONFLICT (message_id) DO NOTHING
"""  # noqa: S608 - composed of the constants above
)
