"""Webhooks, how far each has got, and their last attempts.

Revision ID: 0012
Revises: 0011
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TABLES = (
    """
CREATE TABLE IF NOT EXISTS webhooks (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    url TEXT NOT NULL,
    description TEXT,
    owner TEXT,
    agent_id UUID,
    agent_name TEXT,
    event_types TEXT[],
    secret BYTEA NOT NULL,
    previous_secret BYTEA,
    previous_until TIMESTAMP WITH TIME ZONE,
    rotated_at TIMESTAMP WITH TIME ZONE,
    status TEXT DEFAULT 'active' NOT NULL,
    status_reason TEXT,
    status_changed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    cursor_xid XID8 NOT NULL,
    cursor_id BIGINT NOT NULL,
    failing_since TIMESTAMP WITH TIME ZONE,
    missed BIGINT DEFAULT 0 NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    created_by TEXT NOT NULL,
    CONSTRAINT webhooks_pkey PRIMARY KEY (id),
    CONSTRAINT webhooks_url_http CHECK (url ~ '^https?://'),
    CONSTRAINT webhooks_agent_named CHECK ((agent_id IS NULL) = (agent_name IS NULL)),
    CONSTRAINT webhooks_event_types_not_empty CHECK (cardinality(event_types) > 0),
    CONSTRAINT webhooks_secrets_complete CHECK (
        octet_length(secret) BETWEEN 24 AND 64 AND octet_length(previous_secret) BETWEEN 24 AND 64),
    CONSTRAINT webhooks_previous_ends CHECK ((previous_secret IS NULL) = (previous_until IS NULL)),
    CONSTRAINT webhooks_status_known CHECK (status IN ('active', 'paused', 'disabled')),
    CONSTRAINT webhooks_disabled_has_reason CHECK ((status = 'disabled') = (status_reason IS NOT NULL)),
    CONSTRAINT webhooks_missed_counted CHECK (missed >= 0)
)
""",
    """
CREATE TABLE IF NOT EXISTS webhook_positions (
    webhook_id UUID NOT NULL,
    agent_id UUID NOT NULL,
    sequence BIGINT NOT NULL,
    last_sequence BIGINT NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    claim UUID,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT webhook_positions_pkey PRIMARY KEY (webhook_id, agent_id),
    CONSTRAINT webhook_positions_webhook_id_fkey FOREIGN KEY (webhook_id) REFERENCES webhooks (id) ON DELETE CASCADE,
    CONSTRAINT webhook_positions_something_waits CHECK (sequence >= 0 AND sequence < last_sequence),
    CONSTRAINT webhook_positions_attempts_counted CHECK (attempts >= 0)
)
""",
    """
CREATE INDEX IF NOT EXISTS webhook_positions_first_attempts_idx ON webhook_positions (webhook_id, due_at)
WHERE attempts <= 0
""",
    """
CREATE INDEX IF NOT EXISTS webhook_positions_retries_idx ON webhook_positions (webhook_id, due_at)
WHERE attempts > 0
""",
    """
CREATE TABLE IF NOT EXISTS webhook_deliveries (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    webhook_id UUID NOT NULL,
    at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    event_id UUID NOT NULL,
    event_type TEXT NOT NULL,
    agent_id UUID NOT NULL,
    agent_name TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    attempt INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    status INTEGER,
    detail TEXT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_deliveries_webhook_id_fkey FOREIGN KEY (webhook_id) REFERENCES webhooks (id) ON DELETE CASCADE,
    CONSTRAINT webhook_deliveries_outcome_known CHECK (outcome IN ('accepted', 'refused', 'failed', 'denied')),
    CONSTRAINT webhook_deliveries_answered_has_status CHECK (
        (status IS NOT NULL) = (outcome IN ('accepted', 'refused'))),
    CONSTRAINT webhook_deliveries_detail_short CHECK (char_length(detail) <= 200)
)
""",
    """
CREATE INDEX IF NOT EXISTS webhook_deliveries_webhook_id_id_idx ON webhook_deliveries (webhook_id, id)
""",
)


def upgrade() -> None:
    """New tables only, which nothing uses yet."""
    for statement in TABLES:
        op.execute(statement)
