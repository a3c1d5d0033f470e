"""MCP sessions over HTTP, and the deployment that issued each.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
CREATE TABLE mcp_sessions (
    agent_id UUID NOT NULL,
    session_sha256 BYTEA NOT NULL,
    deployment_id TEXT NOT NULL,
    last_seen_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT mcp_sessions_pkey PRIMARY KEY (agent_id, session_sha256),
    CONSTRAINT mcp_sessions_digest_whole CHECK (octet_length(session_sha256) = 32),
    CONSTRAINT mcp_sessions_of_own_deployment FOREIGN KEY (deployment_id, agent_id)
        REFERENCES deployments (id, agent_id)
)
""",
    "CREATE INDEX mcp_sessions_last_seen_at_idx ON mcp_sessions (last_seen_at)",
)


def upgrade() -> None:
    """Add the table and its index."""
    for statement in STATEMENTS:
        op.execute(statement)
