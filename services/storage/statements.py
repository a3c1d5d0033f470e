"""The writing statements, each taking its rows as one JSON array: paste one into psql, name `:rows`, and it runs."""

from sqlalchemy import text

# What a registration or a verdict may change of a deployment.
ANNOUNCED_COLUMNS = (
    "docker_image",
    "registration_metadata",
    "status",
    "status_reason",
    "status_changed_at",
    "acp_url",
    "rpc_path",
    "health_path",
    "error_style",
    "registered_at",
    "registered_message_id",
    "first_registered_at",
    "ready_at",
    "probe_streak",
)

INSERT_DEPLOYMENTS = text("""
INSERT INTO deployments (
    id, agent_id, docker_image, registration_metadata, status, status_reason, status_changed_at, acp_url, rpc_path,
    health_path, error_style, sgp_deploy_id, helm_release_name, registered_at, registered_message_id,
    first_registered_at, created_at, ready_at, is_production, promoted_at)
SELECT
    id, agent_id, docker_image, registration_metadata, status, status_reason, status_changed_at, acp_url, rpc_path,
    health_path, error_style, sgp_deploy_id, helm_release_name, registered_at, registered_message_id,
    first_registered_at, created_at, ready_at, is_production, promoted_at
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    id text, agent_id uuid, docker_image text, registration_metadata jsonb, status text, status_reason text,
    status_changed_at timestamptz, acp_url text, rpc_path text, health_path text, error_style text,
    sgp_deploy_id text, helm_release_name text, registered_at timestamptz, registered_message_id uuid,
    first_registered_at timestamptz, created_at timestamptz, ready_at timestamptz, is_production boolean,
    promoted_at timestamptz)
ORDER BY id
ON CONFLICT (id) DO NOTHING
""")

UPDATE_DEPLOYMENTS = text("""
UPDATE deployments AS d SET
    docker_image = r.docker_image,
    registration_metadata = r.registration_metadata,
    status = r.status,
    status_reason = r.status_reason,
    status_changed_at = r.status_changed_at,
    acp_url = r.acp_url,
    rpc_path = r.rpc_path,
    health_path = r.health_path,
    error_style = r.error_style,
    registered_at = r.registered_at,
    registered_message_id = r.registered_message_id,
    first_registered_at = r.first_registered_at,
    ready_at = r.ready_at,
    probe_streak = r.probe_streak,
    -- Whoever starts anew is looked at soon.
    probe_due_at = CASE
        WHEN r.probe_streak = 0 AND r.registered_message_id IS DISTINCT FROM d.registered_message_id
        THEN clock_timestamp() ELSE d.probe_due_at
    END
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    id text, docker_image text, registration_metadata jsonb, status text, status_reason text,
    status_changed_at timestamptz, acp_url text, rpc_path text, health_path text, error_style text,
    registered_at timestamptz, registered_message_id uuid, first_registered_at timestamptz, ready_at timestamptz,
    probe_streak integer)
WHERE d.id = r.id
""")

# Demote before anything is promoted: one statement that moves the flag can trip the partial unique index half-way.
DEMOTE = text("""
UPDATE deployments AS d SET is_production = false
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id text)
WHERE d.id = r.id
""")

SERVING_COLUMNS = (
    "production_deployment_id",
    "generation",
    "event_seq",
    "status",
    "status_reason",
    "auto_promote_paused",
    "promote_requested_at",
    "deleted_at",
)

# Everything that makes a change of what serves, and its events: one round trip for one promote as for a whole batch.
CHANGE_SERVING = text("""
WITH promoted AS (
    UPDATE deployments AS d SET is_production = r.is_production, promoted_at = r.promoted_at
    FROM jsonb_to_recordset(CAST(:deployments AS jsonb)) AS r(id text, is_production boolean, promoted_at timestamptz)
    WHERE d.id = r.id
), serving AS (
    UPDATE agents AS a SET
        production_deployment_id = r.production_deployment_id,
        generation = r.generation,
        event_seq = r.event_seq,
        status = r.status,
        status_reason = r.status_reason,
        auto_promote_paused = r.auto_promote_paused,
        promote_requested_at = r.promote_requested_at,
        deleted_at = r.deleted_at,
        updated_at = r.updated_at
    FROM jsonb_to_recordset(CAST(:agents AS jsonb)) AS r(
        id uuid, production_deployment_id text, generation bigint, event_seq bigint, status text, status_reason text,
        auto_promote_paused boolean, promote_requested_at timestamptz, deleted_at timestamptz, updated_at timestamptz)
    WHERE a.id = r.id
), ledger AS (
    INSERT INTO promotions (
        agent_id, generation, cause, actor, reason, restored, at, from_deployment_id, from_acp_url, from_docker_image,
        to_deployment_id, to_acp_url, to_docker_image)
    SELECT
        agent_id, generation, cause, actor, reason, restored, at, from_deployment_id, from_acp_url, from_docker_image,
        to_deployment_id, to_acp_url, to_docker_image
    FROM jsonb_to_recordset(CAST(:ledger AS jsonb)) AS r(
        agent_id uuid, generation bigint, cause text, actor text, reason text, restored bigint, at timestamptz,
        from_deployment_id text, from_acp_url text, from_docker_image text,
        to_deployment_id text, to_acp_url text, to_docker_image text)
)
INSERT INTO outbox (event_id, type, agent_id, agent_name, subject, sequence, generation, payload, traceparent)
SELECT event_id, type, agent_id, agent_name, subject, sequence, generation, payload, traceparent
FROM jsonb_to_recordset(CAST(:events AS jsonb)) AS r(
    event_id uuid, type text, agent_id uuid, agent_name text, subject text, sequence bigint, generation bigint,
    payload jsonb, traceparent text)
ORDER BY agent_id, sequence
""")

DESCRIBED_COLUMNS = (
    "description",
    "docker_image",
    "acp_type",
    "agent_input_type",
    "registration_metadata",
    "legacy_acp_url",
    "legacy_rpc_path",
    "legacy_health_path",
    "legacy_error_style",
    "registered_at",
    "registered_message_id",
    "auto_promote",
    "on_failure",
    "probe_interval_seconds",
    "probe_threshold",
    "probe_timeout_seconds",
)

UPDATE_AGENTS_DESCRIBED = text("""
UPDATE agents AS a SET
    description = r.description,
    docker_image = r.docker_image,
    acp_type = r.acp_type,
    agent_input_type = r.agent_input_type,
    registration_metadata = r.registration_metadata,
    legacy_acp_url = r.legacy_acp_url,
    legacy_rpc_path = r.legacy_rpc_path,
    legacy_health_path = r.legacy_health_path,
    legacy_error_style = r.legacy_error_style,
    registered_at = r.registered_at,
    registered_message_id = r.registered_message_id,
    auto_promote = r.auto_promote,
    on_failure = r.on_failure,
    probe_interval_seconds = r.probe_interval_seconds,
    probe_threshold = r.probe_threshold,
    probe_timeout_seconds = r.probe_timeout_seconds,
    updated_at = r.updated_at
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    id uuid, description text, docker_image text, acp_type text, agent_input_type text, registration_metadata jsonb,
    legacy_acp_url text, legacy_rpc_path text, legacy_health_path text, legacy_error_style text,
    registered_at timestamptz, registered_message_id uuid, auto_promote text, on_failure text,
    probe_interval_seconds double precision, probe_threshold integer, probe_timeout_seconds double precision,
    updated_at timestamptz)
WHERE a.id = r.id
""")

INSERT_AGENTS = text("""
INSERT INTO agents (name)
SELECT name FROM unnest(CAST(:names AS text[])) AS name ORDER BY name
ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING
RETURNING id
""")

DELETE_UNBORN_AGENTS = text("DELETE FROM agents WHERE id = ANY(CAST(:ids AS uuid[]))")

KNOWN_MESSAGES = text("SELECT message_id FROM registrations WHERE message_id = ANY(CAST(:ids AS uuid[]))")

INSERT_REGISTRATIONS = text("""
INSERT INTO registrations (message_id, agent_name, deployment_id, registered_at, dated_at, outcome, reason)
SELECT message_id, agent_name, deployment_id, registered_at, dated_at, outcome, reason
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    position bigint, message_id uuid, agent_name text, deployment_id text, registered_at timestamptz,
    dated_at timestamptz, outcome text, reason text)
ORDER BY position
ON CONFLICT (message_id) DO NOTHING
""")
