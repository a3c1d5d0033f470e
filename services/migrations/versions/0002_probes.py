"""Probes: when a deployment is due, its streak of results, and each agent's probe policy and failure action.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
ALTER TABLE agents
    ADD COLUMN on_failure TEXT DEFAULT 'hold' NOT NULL,
    ADD COLUMN probe_interval_seconds DOUBLE PRECISION,
    ADD COLUMN probe_threshold INTEGER,
    ADD COLUMN probe_timeout_seconds DOUBLE PRECISION,
    ADD CONSTRAINT agents_on_failure_known CHECK (on_failure IN ('hold', 'rollback')),
    ADD CONSTRAINT agents_probes_positive CHECK (
        probe_interval_seconds > 0 AND probe_threshold > 0 AND probe_timeout_seconds > 0
    )
""",
    """
ALTER TABLE deployments
    ADD COLUMN probe_due_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    ADD COLUMN probe_streak INTEGER DEFAULT '0' NOT NULL
""",
    """
CREATE INDEX deployments_probe_due_at_idx ON deployments (probe_due_at)
WHERE expires_at IS NULL AND acp_url IS NOT NULL AND (status <> 'Failed' OR ready_at IS NOT NULL)
""",
    """
CREATE INDEX deployments_pending_since_idx ON deployments (status_changed_at)
WHERE expires_at IS NULL AND status = 'Pending'
""",
)


def upgrade() -> None:
    """Add the columns and indexes. Every existing deployment is due for a probe at once."""
    for statement in STATEMENTS:
        op.execute(statement)
