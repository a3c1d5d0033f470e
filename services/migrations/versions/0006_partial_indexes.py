"""Lists read what lives through indexes that contain nothing else.

Revision ID: 0006
Revises: 0005
"""

from services.migrations.online import create_index, drop_index

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the partial indexes, then drop the two that they replace; the previous release uses either."""
    # Not `deleted_at IS NULL`: a lookup by name that is planned on an empty table could scan these from end to end.
    create_index("agents_not_deleted_created_at_id_idx", "ON agents (created_at, id) WHERE status <> 'Deleted'")
    create_index("agents_not_deleted_id_idx", "ON agents (id) WHERE status <> 'Deleted'")
    create_index(
        "deployments_living_agent_id_created_at_id_idx",
        "ON deployments (agent_id, created_at, id) WHERE expires_at IS NULL",
    )
    drop_index("agents_created_at_id_idx")
    drop_index("deployments_agent_id_created_at_id_idx")
