"""Indexes for retention and history, and the time that a pod with a fast clock announced.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

from services.migrations.online import create_index

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INDEXES = {
    "deployments_of_age_idx": "ON deployments (created_at, id) WHERE expires_at IS NULL",
    "deployments_to_purge_idx": "ON deployments (expires_at, id) WHERE expires_at IS NOT NULL AND purged_at IS NULL",
    "deployments_agent_id_promoted_at_idx": "ON deployments (agent_id, promoted_at) WHERE promoted_at IS NOT NULL",
    "promotions_of_deployment_idx": "ON promotions (agent_id, to_deployment_id, generation)",
    "parked_agent_name_received_at_idx": "ON parked (agent_name, received_at)",
}


def upgrade() -> None:
    """Add the column and the indexes."""
    op.execute("ALTER TABLE registrations ADD COLUMN IF NOT EXISTS dated_at TIMESTAMP WITH TIME ZONE")
    for name, definition in INDEXES.items():
        create_index(name, definition)
