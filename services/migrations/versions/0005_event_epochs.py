"""Event epochs: which database cluster's transaction ids the positions of events count in.

Revision ID: 0005
Revises: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. It stays empty until `adopt_cluster` enters the first epoch."""
    op.execute("""
CREATE TABLE event_epochs (
    epoch BIGINT NOT NULL,
    system_identifier BIGINT,
    began_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT event_epochs_pkey PRIMARY KEY (epoch),
    CONSTRAINT event_epochs_epoch_valid CHECK (epoch >= 0 AND epoch < 32768)
)
""")
