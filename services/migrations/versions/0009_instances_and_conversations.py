"""Instances of deployments, conversations in place of MCP sessions, and draining.

The view `mcp_sessions` is for API processes of the previous release; a later release drops it.

Revision ID: 0009
Revises: 0008
"""

from alembic import op

from services.migrations.online import create_index

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# No default is volatile and no constraint is validated here, so no row is rewritten or read under these locks.
COLUMNS = (
    """
ALTER TABLE deployments
    ADD COLUMN IF NOT EXISTS has_instances BOOLEAN DEFAULT false NOT NULL,
    ADD COLUMN IF NOT EXISTS draining_since TIMESTAMP WITH TIME ZONE,
    ADD COLUMN IF NOT EXISTS drained_at TIMESTAMP WITH TIME ZONE
""",
    """
ALTER TABLE agents
    ADD COLUMN IF NOT EXISTS affinity TEXT DEFAULT 'deployment' NOT NULL,
    ADD COLUMN IF NOT EXISTS conversation_keys TEXT,
    ADD COLUMN IF NOT EXISTS conversation_idle_seconds DOUBLE PRECISION,
    ADD COLUMN IF NOT EXISTS conversation_max_age_seconds DOUBLE PRECISION,
    ADD COLUMN IF NOT EXISTS drain_deadline_seconds DOUBLE PRECISION,
    DROP CONSTRAINT IF EXISTS agents_affinity_known,
    DROP CONSTRAINT IF EXISTS agents_conversation_keys_known,
    DROP CONSTRAINT IF EXISTS agents_conversations_positive,
    ADD CONSTRAINT agents_affinity_known CHECK (affinity IN ('none', 'deployment', 'instance')) NOT VALID,
    ADD CONSTRAINT agents_conversation_keys_known CHECK (conversation_keys IN ('a2a', 'acp')) NOT VALID,
    ADD CONSTRAINT agents_conversations_positive CHECK (
        conversation_idle_seconds > 0 AND conversation_max_age_seconds > 0 AND drain_deadline_seconds > 0) NOT VALID
""",
    """
ALTER TABLE registrations
    ADD COLUMN IF NOT EXISTS instance_id TEXT,
    DROP CONSTRAINT IF EXISTS registrations_outcome_known,
    ADD CONSTRAINT registrations_outcome_known
        CHECK (outcome IN ('Registered', 'Stale', 'Shadowed', 'Rejected', 'Departed')) NOT VALID
""",
)
VALIDATIONS = (
    "ALTER TABLE agents VALIDATE CONSTRAINT agents_affinity_known",
    "ALTER TABLE agents VALIDATE CONSTRAINT agents_conversation_keys_known",
    "ALTER TABLE agents VALIDATE CONSTRAINT agents_conversations_positive",
    "ALTER TABLE registrations VALIDATE CONSTRAINT registrations_outcome_known",
)
TABLES = (
    """
CREATE TABLE IF NOT EXISTS instances (
    deployment_id TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    agent_id UUID NOT NULL,
    acp_url TEXT NOT NULL,
    rpc_path TEXT NOT NULL,
    health_path TEXT NOT NULL,
    status TEXT NOT NULL,
    status_reason TEXT,
    status_changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    registered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    registered_message_id UUID NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ready_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT instances_pkey PRIMARY KEY (deployment_id, instance_id),
    CONSTRAINT instances_id_valid CHECK (instance_id = '' OR instance_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'),
    CONSTRAINT instances_status_known CHECK (status IN ('Pending', 'Ready', 'Failed')),
    CONSTRAINT instances_ready_since CHECK (status <> 'Ready' OR ready_at IS NOT NULL),
    CONSTRAINT instances_of_own_deployment FOREIGN KEY(deployment_id, agent_id) REFERENCES deployments (id, agent_id)
) WITH (fillfactor = 70)
""",
    """
CREATE INDEX IF NOT EXISTS instances_not_ready_since_idx ON instances (status_changed_at) WHERE status <> 'Ready'
""",
    """
CREATE TABLE IF NOT EXISTS departed_instances (
    agent_name TEXT NOT NULL,
    deployment_id TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    registered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    message_id UUID NOT NULL,
    departed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT departed_instances_pkey PRIMARY KEY (agent_name, deployment_id, instance_id)
)
""",
    "CREATE INDEX IF NOT EXISTS departed_instances_departed_at_idx ON departed_instances (departed_at)",
)
# The schedule of each instance's probes; '' is the one of a deployment whose pods do not name their instance.
PROBES_COLUMN = "ALTER TABLE probes ADD COLUMN IF NOT EXISTS instance_id TEXT DEFAULT '' NOT NULL"
PROBES_KEY = """
ALTER TABLE probes
    DROP CONSTRAINT probes_pkey,
    ADD CONSTRAINT probes_pkey PRIMARY KEY USING INDEX probes_new_pkey
"""
# By the name of the constraint: it is valid before and after the key is replaced.
TRIGGER_FUNCTIONS = (
    """
CREATE OR REPLACE FUNCTION schedule_first_probes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO probes (deployment_id, is_production)
    SELECT id, is_production FROM inserted WHERE acp_url IS NOT NULL AND expires_at IS NULL AND NOT has_instances
    ON CONFLICT ON CONSTRAINT probes_pkey DO UPDATE SET due_at = excluded.due_at, streak = 0, failing_since = NULL,
        failed_by = NULL, confirmed = false, opinion_until = NULL, last_call_at = NULL;
    RETURN NULL;
END
$$
""",
    """
CREATE OR REPLACE FUNCTION copy_probe_schedule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO probes AS p (deployment_id, is_production, due_at, streak)
    VALUES (NEW.id, NEW.is_production, NEW.probe_due_at, NEW.probe_streak)
    ON CONFLICT ON CONSTRAINT probes_pkey DO UPDATE SET due_at = excluded.due_at, streak = excluded.streak,
        failing_since = NULL, failed_by = NULL, confirmed = false, opinion_until = NULL;
    RETURN NULL;
END
$$
""",
)
CONVERSATIONS = (
    "ALTER TABLE mcp_sessions RENAME TO conversations",
    "ALTER TABLE conversations RENAME COLUMN session_sha256 TO key_sha256",
    "ALTER TABLE conversations RENAME CONSTRAINT mcp_sessions_pkey TO conversations_pkey",
    "ALTER TABLE conversations RENAME CONSTRAINT mcp_sessions_digest_whole TO conversations_digest_whole",
    "ALTER TABLE conversations RENAME CONSTRAINT mcp_sessions_of_own_deployment TO conversations_of_own_deployment",
    "ALTER INDEX mcp_sessions_last_seen_at_idx RENAME TO conversations_last_seen_at_idx",
    # NULL, when it is not known: a conversation that the previous release has stored.
    "ALTER TABLE conversations ADD COLUMN instance_id TEXT, ADD COLUMN started_at TIMESTAMP WITH TIME ZONE",
    "ALTER TABLE conversations ALTER COLUMN started_at SET DEFAULT clock_timestamp()",
    """
CREATE VIEW mcp_sessions AS
SELECT agent_id, key_sha256 AS session_sha256, deployment_id, last_seen_at, preview FROM conversations
""",
)


def upgrade() -> None:
    """Each step is short, and all but the last can be run again after an error."""
    for statement in (*TABLES, PROBES_COLUMN):
        op.execute(statement)
    for statement in COLUMNS:
        with op.get_context().autocommit_block():
            op.execute(statement)
    with op.get_context().autocommit_block():
        for statement in (*VALIDATIONS, *TRIGGER_FUNCTIONS):
            op.execute(statement)
    create_index("deployments_draining_since_idx", "ON deployments (draining_since) WHERE draining_since IS NOT NULL")
    create_index("mcp_sessions_deployment_id_idx", "ON mcp_sessions (deployment_id, last_seen_at)")
    # Building it waits for all transactions in which the earlier functions may run.
    create_index("probes_new_pkey", "ON probes (deployment_id, instance_id)", unique=True)
    for statement in (PROBES_KEY, *CONVERSATIONS):
        op.execute(statement)
    op.execute("ALTER INDEX mcp_sessions_deployment_id_idx RENAME TO conversations_deployment_id_idx")
