"""The first schema: agents, deployments, ledger, outbox, inbox and parked messages.

Revision ID: 0001
Revises: none
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    """
CREATE TABLE agents (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    name TEXT NOT NULL,
    description TEXT DEFAULT '' NOT NULL,
    docker_image TEXT,
    status TEXT DEFAULT 'BuildOnly' NOT NULL,
    status_reason TEXT,
    acp_type TEXT DEFAULT 'async' NOT NULL,
    agent_input_type TEXT,
    registration_metadata JSONB,
    legacy_acp_url TEXT,
    legacy_rpc_path TEXT DEFAULT '/api' NOT NULL,
    legacy_health_path TEXT DEFAULT '/healthz' NOT NULL,
    legacy_error_style TEXT DEFAULT 'http' NOT NULL,
    registered_at TIMESTAMP WITH TIME ZONE,
    registered_message_id UUID,
    production_deployment_id TEXT,
    generation BIGINT DEFAULT '0' NOT NULL,
    event_seq BIGINT DEFAULT '0' NOT NULL,
    auto_promote TEXT DEFAULT 'first' NOT NULL,
    auto_promote_paused BOOLEAN DEFAULT false NOT NULL,
    promote_requested_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT agents_pkey PRIMARY KEY (id),
    CONSTRAINT agents_name_valid CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    CONSTRAINT agents_status_known CHECK (status IN ('BuildOnly', 'Ready', 'Failed', 'Deleted')),
    CONSTRAINT agents_acp_type_known CHECK (acp_type IN ('sync', 'async', 'agentic')),
    CONSTRAINT agents_agent_input_type_known CHECK (agent_input_type IN ('text', 'json')),
    CONSTRAINT agents_legacy_error_style_known CHECK (legacy_error_style IN ('http', 'jsonrpc')),
    CONSTRAINT agents_auto_promote_known CHECK (auto_promote IN ('never', 'first', 'always')),
    CONSTRAINT agents_counters_consistent CHECK (generation >= 0 AND event_seq >= generation),
    CONSTRAINT agents_deleted_status CHECK ((status = 'Deleted') = (deleted_at IS NOT NULL)),
    CONSTRAINT agents_deleted_serves_nothing CHECK (deleted_at IS NULL OR production_deployment_id IS NULL),
    CONSTRAINT agents_registered_pair CHECK ((registered_at IS NULL) = (registered_message_id IS NULL))
)
""",
    """
CREATE INDEX agents_created_at_id_idx ON agents (created_at, id)
""",
    """
CREATE INDEX agents_name_deleted_at_idx ON agents (name, deleted_at) WHERE deleted_at IS NOT NULL
""",
    """
CREATE UNIQUE INDEX agents_name_of_living_key ON agents (name) WHERE deleted_at IS NULL
""",
    """
CREATE TABLE deployments (
    id TEXT NOT NULL,
    agent_id UUID NOT NULL,
    docker_image TEXT,
    registration_metadata JSONB,
    status TEXT NOT NULL,
    status_reason TEXT,
    status_changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    acp_url TEXT,
    rpc_path TEXT DEFAULT '/api' NOT NULL,
    health_path TEXT DEFAULT '/healthz' NOT NULL,
    error_style TEXT DEFAULT 'http' NOT NULL,
    is_production BOOLEAN DEFAULT false NOT NULL,
    sgp_deploy_id TEXT,
    helm_release_name TEXT,
    registered_at TIMESTAMP WITH TIME ZONE,
    registered_message_id UUID,
    first_registered_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ready_at TIMESTAMP WITH TIME ZONE,
    promoted_at TIMESTAMP WITH TIME ZONE,
    expires_at TIMESTAMP WITH TIME ZONE,
    purged_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT deployments_pkey PRIMARY KEY (id),
    CONSTRAINT deployments_id_agent_id_key UNIQUE (id, agent_id),
    CONSTRAINT deployments_id_valid CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'),
    CONSTRAINT deployments_status_known CHECK (status IN ('Pending', 'Ready', 'Failed')),
    CONSTRAINT deployments_error_style_known CHECK (error_style IN ('http', 'jsonrpc')),
    CONSTRAINT deployments_ready_has_address CHECK (status <> 'Ready' OR acp_url IS NOT NULL OR purged_at IS NOT NULL),
    CONSTRAINT deployments_production_not_deleted CHECK (NOT (is_production AND expires_at IS NOT NULL)),
    CONSTRAINT deployments_production_was_ready CHECK (NOT (is_production AND status = 'Pending')),
    CONSTRAINT deployments_purged_was_deleted CHECK (purged_at IS NULL OR expires_at IS NOT NULL),
    CONSTRAINT deployments_registered_pair CHECK ((registered_at IS NULL) = (registered_message_id IS NULL)),
    CONSTRAINT deployments_agent_id_fkey FOREIGN KEY(agent_id) REFERENCES agents (id)
)
""",
    """
CREATE INDEX deployments_agent_id_created_at_id_idx ON deployments (agent_id, created_at, id)
""",
    """
CREATE UNIQUE INDEX deployments_one_production_key ON deployments (agent_id) WHERE is_production
""",
    """
CREATE TABLE promotions (
    agent_id UUID NOT NULL,
    generation BIGINT NOT NULL,
    cause TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT,
    from_deployment_id TEXT,
    from_acp_url TEXT,
    from_docker_image TEXT,
    to_deployment_id TEXT,
    to_acp_url TEXT,
    to_docker_image TEXT,
    restored BIGINT,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT promotions_pkey PRIMARY KEY (agent_id, generation),
    CONSTRAINT promotions_generation_positive CHECK (generation > 0),
    CONSTRAINT promotions_cause_known CHECK (
        cause IN ('first', 'always', 'manual', 'rollback', 'legacy', 'agent_deleted')
    ),
    CONSTRAINT promotions_restored_is_older CHECK (restored IS NULL OR (cause = 'rollback' AND restored < generation)),
    CONSTRAINT promotions_deployment_has_address CHECK (to_deployment_id IS NULL OR to_acp_url IS NOT NULL),
    CONSTRAINT promotions_agent_id_fkey FOREIGN KEY(agent_id) REFERENCES agents (id)
)
""",
    """
CREATE UNIQUE INDEX promotions_agent_id_at_idx ON promotions (agent_id, at)
""",
    """
CREATE TABLE outbox (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    event_id UUID NOT NULL,
    type TEXT NOT NULL,
    agent_id UUID NOT NULL,
    agent_name TEXT NOT NULL,
    subject TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    payload JSONB NOT NULL,
    traceparent TEXT,
    xid xid8 DEFAULT GREATEST(
        pg_current_xact_id(), (pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1)::text::xid8
    ) NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    published_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT outbox_pkey PRIMARY KEY (id),
    CONSTRAINT outbox_agent_id_sequence_key UNIQUE (agent_id, sequence),
    CONSTRAINT outbox_sequence_positive CHECK (sequence > 0)
)
""",
    """
CREATE INDEX outbox_unpublished_idx ON outbox (id) WHERE published_at IS NULL
""",
    """
CREATE INDEX outbox_xid_id_idx ON outbox (xid, id)
""",
    """
CREATE TABLE outbox_low_water (
    agent_id UUID NOT NULL,
    sequence BIGINT NOT NULL,
    xid xid8 NOT NULL,
    id BIGINT NOT NULL,
    CONSTRAINT outbox_low_water_pkey PRIMARY KEY (agent_id)
)
""",
    """
CREATE INDEX outbox_low_water_xid_id_idx ON outbox_low_water (xid, id)
""",
    """
CREATE TABLE registrations (
    message_id UUID NOT NULL,
    agent_name TEXT NOT NULL,
    deployment_id TEXT,
    registered_at TIMESTAMP WITH TIME ZONE,
    outcome TEXT NOT NULL,
    reason TEXT,
    received_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    seq BIGINT GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT registrations_pkey PRIMARY KEY (message_id),
    CONSTRAINT registrations_outcome_known CHECK (outcome IN ('Registered', 'Stale', 'Shadowed', 'Rejected'))
)
""",
    """
CREATE INDEX registrations_agent_name_seq_idx ON registrations (agent_name, seq)
""",
    """
CREATE INDEX registrations_received_at_idx ON registrations (received_at)
""",
    """
CREATE TABLE parked (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    key TEXT NOT NULL,
    message_id UUID,
    agent_name TEXT,
    deployment_id TEXT,
    reason TEXT NOT NULL,
    error TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    headers JSONB NOT NULL,
    body BYTEA NOT NULL,
    attempts INTEGER DEFAULT '1' NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    retried_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT parked_pkey PRIMARY KEY (id),
    CONSTRAINT parked_attempts_positive CHECK (attempts > 0),
    CONSTRAINT parked_key_key UNIQUE (key)
)
""",
    """
CREATE INDEX parked_received_at_idx ON parked (received_at)
""",
    """
ALTER TABLE agents ADD CONSTRAINT agents_production_is_own_deployment
FOREIGN KEY(production_deployment_id, id)
REFERENCES deployments (id, agent_id)
""",
    """
CREATE OR REPLACE FUNCTION promotions_are_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'promotions is append-only: % refused', TG_OP
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'promotions_append_only';
END
$$
""",
    """
CREATE TRIGGER promotions_refuse_change BEFORE UPDATE OR DELETE ON promotions
FOR EACH ROW EXECUTE FUNCTION promotions_are_append_only()
""",
    """
CREATE TRIGGER promotions_refuse_truncate BEFORE TRUNCATE ON promotions
FOR EACH STATEMENT EXECUTE FUNCTION promotions_are_append_only()
""",
)


def upgrade() -> None:
    """Create all tables, indexes and triggers."""
    for statement in TABLES:
        op.execute(statement)
