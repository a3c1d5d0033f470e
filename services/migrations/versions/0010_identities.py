"""API keys with scopes, the audit log, and the identity behind each row of the ledger.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# No default is volatile and no constraint is validated here, so no row is rewritten or read under these locks.
COLUMNS = (
    """
ALTER TABLE promotions
    ADD COLUMN IF NOT EXISTS request_id TEXT,
    ADD COLUMN IF NOT EXISTS on_behalf_of TEXT
""",
    """
ALTER TABLE agents
    ADD COLUMN IF NOT EXISTS forward_authorization TEXT DEFAULT 'strip' NOT NULL,
    ADD COLUMN IF NOT EXISTS calls_per_second DOUBLE PRECISION,
    ADD COLUMN IF NOT EXISTS calls_in_flight INTEGER,
    DROP CONSTRAINT IF EXISTS agents_forward_authorization_known,
    DROP CONSTRAINT IF EXISTS agents_calls_positive,
    ADD CONSTRAINT agents_forward_authorization_known CHECK (forward_authorization IN ('strip', 'pass')) NOT VALID,
    ADD CONSTRAINT agents_calls_positive CHECK (calls_per_second > 0 AND calls_in_flight > 0) NOT VALID
""",
)
VALIDATIONS = (
    "ALTER TABLE agents VALIDATE CONSTRAINT agents_forward_authorization_known",
    "ALTER TABLE agents VALIDATE CONSTRAINT agents_calls_positive",
)
TABLES = (
    """
CREATE TABLE IF NOT EXISTS keys (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    name TEXT NOT NULL,
    owner TEXT,
    scopes TEXT[] NOT NULL,
    agents TEXT[],
    secret_sha256 BYTEA NOT NULL,
    previous_sha256 BYTEA,
    previous_until TIMESTAMP WITH TIME ZONE,
    hint TEXT NOT NULL,
    calls_per_second DOUBLE PRECISION,
    calls_in_flight INTEGER,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    created_by TEXT NOT NULL,
    rotated_at TIMESTAMP WITH TIME ZONE,
    expires_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    last_used_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT keys_pkey PRIMARY KEY (id),
    CONSTRAINT keys_secret_sha256_key UNIQUE (secret_sha256),
    CONSTRAINT keys_previous_sha256_key UNIQUE (previous_sha256),
    CONSTRAINT keys_name_valid CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    CONSTRAINT keys_scopes_known CHECK (
        cardinality(scopes) > 0 AND scopes <@ ARRAY['read', 'register', 'invoke', 'promote', 'admin']),
    CONSTRAINT keys_agents_not_empty CHECK (cardinality(agents) > 0),
    CONSTRAINT keys_digests_complete CHECK (
        octet_length(secret_sha256) = 32 AND (previous_sha256 IS NULL OR octet_length(previous_sha256) = 32)),
    CONSTRAINT keys_previous_ends CHECK ((previous_sha256 IS NULL) = (previous_until IS NULL)),
    CONSTRAINT keys_calls_positive CHECK (calls_per_second > 0 AND calls_in_flight > 0)
)
""",
    "CREATE UNIQUE INDEX IF NOT EXISTS keys_name_of_living_key ON keys (name) WHERE revoked_at IS NULL",
    """
CREATE TABLE IF NOT EXISTS keys_version (
    id BOOLEAN DEFAULT true NOT NULL,
    version BIGINT NOT NULL,
    CONSTRAINT keys_version_pkey PRIMARY KEY (id),
    CONSTRAINT keys_version_one_row CHECK (id)
)
""",
    "INSERT INTO keys_version (version) VALUES (0) ON CONFLICT DO NOTHING",
    """
CREATE TABLE IF NOT EXISTS audit (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    agent_name TEXT,
    request_id TEXT,
    on_behalf_of TEXT,
    details JSONB DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT audit_pkey PRIMARY KEY (id),
    CONSTRAINT audit_action_valid CHECK (action ~ '^[a-z]+([.-][a-z]+)*$')
)
""",
    "CREATE INDEX IF NOT EXISTS audit_agent_name_id_idx ON audit (agent_name, id)",
)
TRIGGERS = (
    """
CREATE OR REPLACE FUNCTION count_keys_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE keys_version SET version = version + 1;
    RETURN NULL;
END
$$
""",
    """
CREATE OR REPLACE TRIGGER keys_count_version
AFTER UPDATE OF secret_sha256, previous_sha256, previous_until, scopes, agents, calls_per_second, calls_in_flight,
    expires_at, revoked_at OR DELETE OR TRUNCATE ON keys
FOR EACH STATEMENT EXECUTE FUNCTION count_keys_version()
""",
    """
CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit is append-only: % refused', TG_OP
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'audit_append_only';
END
$$
""",
    """
CREATE OR REPLACE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON audit
FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()
""",
    """
CREATE OR REPLACE TRIGGER audit_refuse_truncate BEFORE TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()
""",
)


def upgrade() -> None:
    """Each step is short, and can be run again after an error."""
    for statement in (*TABLES, *TRIGGERS):
        op.execute(statement)
    for statement in COLUMNS:
        with op.get_context().autocommit_block():
            op.execute(statement)
    with op.get_context().autocommit_block():
        for statement in VALIDATIONS:
            op.execute(statement)
