"""API keys, and the audit log of changes that are not in the ledger."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import DDL, CheckConstraint, Identity, Index, Integer, Text, event, func, insert, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from contracts.fields import AGENT_NAME_PATTERN
from services.storage.models.base import CLOCK, Base


class Key(Base):
    """An API key: the SHA-256 digest of its secret, and what its holder may do. The secret itself is not stored.

    `agents` are names of agents, or prefixes that end with `*`; NULL: all agents. After a rotation the previous secret
    stays valid until `previous_until`.
    """

    __tablename__ = "keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    name: Mapped[str]
    owner: Mapped[str | None]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    agents: Mapped[list[str] | None] = mapped_column(ARRAY(Text()))
    secret_sha256: Mapped[bytes] = mapped_column(unique=True)
    previous_sha256: Mapped[bytes | None] = mapped_column(unique=True)
    previous_until: Mapped[datetime | None]
    hint: Mapped[str]
    calls_per_second: Mapped[float | None]
    calls_in_flight: Mapped[int | None] = mapped_column(Integer())
    created_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    created_by: Mapped[str]
    rotated_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(f"name ~ '{AGENT_NAME_PATTERN}'", name="name_valid"),
        CheckConstraint(
            "cardinality(scopes) > 0 AND scopes <@ ARRAY['read', 'register', 'invoke', 'promote', 'admin']",
            name="scopes_known",
        ),
        CheckConstraint("cardinality(agents) > 0", name="agents_not_empty"),
        CheckConstraint(
            "octet_length(secret_sha256) = 32 AND (previous_sha256 IS NULL OR octet_length(previous_sha256) = 32)",
            name="digests_complete",
        ),
        CheckConstraint("(previous_sha256 IS NULL) = (previous_until IS NULL)", name="previous_ends"),
        CheckConstraint("calls_per_second > 0 AND calls_in_flight > 0", name="calls_positive"),
        Index("keys_name_of_living_key", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
    )


class KeysVersion(Base):
    """One row: a number that each change of a key increases, so that a process sees that what it knows is old."""

    __tablename__ = "keys_version"

    id: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    version: Mapped[int]

    __table_args__ = (CheckConstraint("id", name="one_row"),)


class AuditEntry(Base):
    """A change that is not in the ledger: who made it, when, and what it was. The table is append-only."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    agent_name: Mapped[str | None]
    request_id: Mapped[str | None]
    on_behalf_of: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))

    __table_args__ = (
        CheckConstraint("action ~ '^[a-z]+([.-][a-z]+)*$'", name="action_valid"),
        Index("audit_agent_name_id_idx", "agent_name", "id"),
        Index("audit_actor_id_idx", "actor", "id"),
        Index("audit_action_id_idx", "action", "id"),
    )


COUNT_FUNCTION = """
CREATE OR REPLACE FUNCTION count_keys_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE keys_version SET version = version + 1;
    RETURN NULL;
END
$$
"""
# Of everything that a process remembers of a key. A new key is unknown to all processes.
COUNT_TRIGGER = """
CREATE OR REPLACE TRIGGER keys_count_version
AFTER UPDATE OF secret_sha256, previous_sha256, previous_until, scopes, agents, calls_per_second, calls_in_flight,
    expires_at, revoked_at OR DELETE OR TRUNCATE ON keys
FOR EACH STATEMENT EXECUTE FUNCTION count_keys_version()
"""
AUDIT_GUARD_FUNCTION = """
CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit is append-only: % refused', TG_OP
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'audit_append_only';
END
$$
"""
AUDIT_ROW_GUARD = """
CREATE OR REPLACE TRIGGER audit_refuse_change BEFORE UPDATE OR DELETE ON audit
FOR EACH ROW EXECUTE FUNCTION audit_is_append_only()
"""
AUDIT_TABLE_GUARD = """
CREATE OR REPLACE TRIGGER audit_refuse_truncate BEFORE TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()
"""
for statement in (COUNT_FUNCTION, COUNT_TRIGGER, AUDIT_GUARD_FUNCTION, AUDIT_ROW_GUARD, AUDIT_TABLE_GUARD):
    event.listen(Base.metadata, "after_create", DDL(statement.replace("%", "%%")))  # type: ignore[no-untyped-call]
event.listen(
    KeysVersion.__table__,
    "after_create",
    lambda _table, connection, **_: connection.execute(insert(KeysVersion).values(version=0)),
)
