"""The schedule of probes in a narrow table of its own, and the janitors that run.

The columns `probe_due_at` and `probe_streak` of `deployments`, with their index and the second trigger, are for the
processes of the previous release; a later release drops them.

Revision ID: 0008
Revises: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
CREATE TABLE IF NOT EXISTS probes (
    deployment_id TEXT NOT NULL,
    is_production BOOLEAN DEFAULT false NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    streak INTEGER DEFAULT '0' NOT NULL,
    failing_since TIMESTAMP WITH TIME ZONE,
    failed_by UUID,
    confirmed BOOLEAN DEFAULT false NOT NULL,
    opinion_until TIMESTAMP WITH TIME ZONE,
    last_call_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT probes_pkey PRIMARY KEY (deployment_id),
    CONSTRAINT probes_confirmed_was_failed CHECK (NOT confirmed OR failed_by IS NOT NULL)
) WITH (fillfactor = 70)
""",
    "CREATE INDEX IF NOT EXISTS probes_is_production_due_at_idx ON probes (is_production, due_at)",
    """
CREATE TABLE IF NOT EXISTS janitors (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    panic_since TIMESTAMP WITH TIME ZONE,
    probed INTEGER DEFAULT '0' NOT NULL,
    failing INTEGER DEFAULT '0' NOT NULL,
    unknown INTEGER DEFAULT '0' NOT NULL,
    unknown_reason TEXT,
    CONSTRAINT janitors_pkey PRIMARY KEY (id),
    CONSTRAINT janitors_counts_consistent CHECK (failing BETWEEN 0 AND probed AND unknown >= 0)
) WITH (fillfactor = 70)
""",
    """
CREATE OR REPLACE FUNCTION schedule_first_probes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO probes (deployment_id, is_production)
    SELECT id, is_production FROM inserted WHERE acp_url IS NOT NULL AND expires_at IS NULL
    ON CONFLICT (deployment_id) DO UPDATE SET due_at = excluded.due_at, streak = 0, failing_since = NULL,
        failed_by = NULL, confirmed = false, opinion_until = NULL, last_call_at = NULL;
    RETURN NULL;
END
$$
""",
    """
CREATE OR REPLACE TRIGGER deployments_schedule_first_probes AFTER INSERT ON deployments
REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION schedule_first_probes()
""",
    """
CREATE OR REPLACE FUNCTION copy_probe_schedule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO probes AS p (deployment_id, is_production, due_at, streak)
    VALUES (NEW.id, NEW.is_production, NEW.probe_due_at, NEW.probe_streak)
    ON CONFLICT (deployment_id) DO UPDATE SET due_at = excluded.due_at, streak = excluded.streak,
        failing_since = NULL, failed_by = NULL, confirmed = false, opinion_until = NULL;
    RETURN NULL;
END
$$
""",
    """
CREATE OR REPLACE TRIGGER deployments_copy_probe_schedule AFTER UPDATE OF probe_due_at ON deployments
FOR EACH ROW WHEN (
    NEW.registered_message_id IS DISTINCT FROM OLD.registered_message_id AND NEW.probe_due_at <> OLD.probe_due_at
) EXECUTE FUNCTION copy_probe_schedule()
""",
)
# Runs after the triggers are committed, so no deployment is missed, and holds no lock that blocks writers.
FILL = """
INSERT INTO probes (deployment_id, is_production, due_at, streak, failing_since)
SELECT id, is_production, probe_due_at, probe_streak, CASE WHEN probe_streak < 0 THEN clock_timestamp() END
FROM deployments
WHERE expires_at IS NULL AND acp_url IS NOT NULL AND (status <> 'Failed' OR ready_at IS NOT NULL)
ON CONFLICT (deployment_id) DO NOTHING
"""


def upgrade() -> None:
    """Add the tables and triggers, and copy the schedule. Everything here can be run again after an error."""
    for statement in STATEMENTS:
        op.execute(statement)
    with op.get_context().autocommit_block():
        op.execute(FILL)
