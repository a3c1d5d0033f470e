"""The route that issued each MCP session: production's, or one deployment's.

Before, a session that a preview's route issued was also valid on production's route, and rows did not record the route.
Rows of deployments that were never in production are deleted; the route of all others stays NULL, which counts as
production's.

Revision ID: 0007
Revises: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
DELETE FROM mcp_sessions AS s USING deployments AS d WHERE d.id = s.deployment_id AND d.promoted_at IS NULL
""",
    # Nullable and without a default: no row is rewritten, and the table is locked for a moment only. Processes of the
    # previous version, which do not know the column, can still insert rows.
    "ALTER TABLE mcp_sessions ADD COLUMN preview BOOLEAN",
)


def upgrade() -> None:
    """Add the column, last in the transaction, so that its lock is short."""
    for statement in STATEMENTS:
        op.execute(statement)
