"""Calls and failures per agent, version and minute; indexes for a person's or one kind of entries of the audit log.

Revision ID: 0011
Revises: 0010
"""

from alembic import op

from services.migrations.online import create_index

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
CREATE TABLE IF NOT EXISTS call_counts (
    agent_id UUID NOT NULL,
    minute TIMESTAMP WITH TIME ZONE NOT NULL,
    deployment_id TEXT NOT NULL,
    process_id UUID NOT NULL,
    calls INTEGER NOT NULL,
    agent_failures INTEGER NOT NULL,
    gateway_failures INTEGER NOT NULL,
    answered INTEGER NOT NULL,
    answer_seconds DOUBLE PRECISION NOT NULL,
    longest_seconds DOUBLE PRECISION NOT NULL,
    CONSTRAINT call_counts_pkey PRIMARY KEY (agent_id, minute, deployment_id, process_id),
    CONSTRAINT call_counts_consistent CHECK (
        agent_failures >= 0 AND gateway_failures >= 0 AND calls > 0 AND agent_failures + gateway_failures <= calls
        AND answered BETWEEN 0 AND calls AND answer_seconds >= 0 AND longest_seconds >= 0)
) WITH (fillfactor = 70)
""",
    "CREATE INDEX IF NOT EXISTS call_counts_minute_idx ON call_counts (minute)",
)


def upgrade() -> None:
    """A new table that the previous release does not know. Everything here can be run again after an error."""
    for statement in STATEMENTS:
        op.execute(statement)
    create_index("audit_actor_id_idx", "ON audit (actor, id)")
    create_index("audit_action_id_idx", "ON audit (action, id)")
