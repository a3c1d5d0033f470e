"""Probes: when a deployment is due, its streak of results, and each agent's probe policy and failure action.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

from services.migrations.online import create_index

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
ALTER TABLE agents
    ADD COLUMN IF NOT EXISTS on_failure TEXT DEFAULT 'hold' NOT NULL,
    ADD COLUMN IF NOT EXISTS probe_interval_seconds DOUBLE PRECISION,
    ADD COLUMN IF NOT EXISTS probe_threshold INTEGER,
    ADD COLUMN IF NOT EXISTS probe_timeout_seconds DOUBLE PRECISION,
    DROP CONSTRAINT IF EXISTS agents_on_failure_known,
    DROP CONSTRAINT IF EXISTS agents_probes_positive
""",
    """
ALTER TABLE agents
    ADD CONSTRAINT agents_on_failure_known CHECK (on_failure IN ('hold', 'rollback')) NOT VALID,
    ADD CONSTRAINT agents_probes_positive CHECK (
        probe_interval_seconds > 0 AND probe_threshold > 0 AND probe_timeout_seconds > 0
    ) NOT VALID
""",
    # A volatile default would rewrite the table: rows that exist get the time of this statement.
    """
ALTER TABLE deployments
    ADD COLUMN IF NOT EXISTS probe_due_at TIMESTAMP WITH TIME ZONE DEFAULT statement_timestamp() NOT NULL,
    ADD COLUMN IF NOT EXISTS probe_streak INTEGER DEFAULT '0' NOT NULL
""",
    "ALTER TABLE deployments ALTER COLUMN probe_due_at SET DEFAULT clock_timestamp()",
)
# Reads the table under a lock that blocks neither readers nor writers.
VALIDATIONS = (
    "ALTER TABLE agents VALIDATE CONSTRAINT agents_on_failure_known",
    "ALTER TABLE agents VALIDATE CONSTRAINT agents_probes_positive",
)
INDEXES = {
    "deployments_probe_due_at_idx": """ON deployments (probe_due_at)
WHERE expires_at IS NULL AND acp_url IS NOT NULL AND (status <> 'Failed' OR ready_at IS NOT NULL)""",
    "deployments_pending_since_idx": """ON deployments (status_changed_at)
WHERE expires_at IS NULL AND status = 'Pending'""",
}


def upgrade() -> None:
    """Add the columns and indexes. Every existing deployment is due for a probe at once."""
    for statement in STATEMENTS:
        op.execute(statement)
    for name, definition in INDEXES.items():
        create_index(name, definition)
    for statement in VALIDATIONS:
        op.execute(statement)
