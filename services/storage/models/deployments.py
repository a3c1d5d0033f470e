"""Agents, deployments, and the ledger."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    DDL,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    UniqueConstraint,
    event,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from contracts.fields import AGENT_NAME_PATTERN, DEFAULT_HEALTH_PATH, DEFAULT_RPC_PATH, DEPLOYMENT_ID_PATTERN
from services.storage.models.base import CLOCK, Base

# Deployments that a janitor probes: all with an address, except deleted ones and those that failed before they were
# ever Ready.
PROBED = "expires_at IS NULL AND acp_url IS NOT NULL AND (status <> 'Failed' OR ready_at IS NOT NULL)"
# Deployments that have a deadline.
WAITING = "expires_at IS NULL AND status = 'Pending'"


class Agent(Base):
    """A named service. `production_deployment_id` and `generation` define what serves."""

    __tablename__ = "agents"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    name: Mapped[str]
    description: Mapped[str] = mapped_column(server_default="")
    docker_image: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default="BuildOnly")
    status_reason: Mapped[str | None]
    acp_type: Mapped[str] = mapped_column(server_default="async")
    agent_input_type: Mapped[str | None]
    registration_metadata: Mapped[dict[str, Any] | None]
    legacy_acp_url: Mapped[str | None]
    legacy_rpc_path: Mapped[str] = mapped_column(server_default=DEFAULT_RPC_PATH)
    legacy_health_path: Mapped[str] = mapped_column(server_default=DEFAULT_HEALTH_PATH)
    legacy_error_style: Mapped[str] = mapped_column(server_default="http")
    registered_at: Mapped[datetime | None]
    registered_message_id: Mapped[UUID | None]
    production_deployment_id: Mapped[str | None]
    generation: Mapped[int] = mapped_column(server_default="0")
    event_seq: Mapped[int] = mapped_column(server_default="0")
    auto_promote: Mapped[str] = mapped_column(server_default="first")
    auto_promote_paused: Mapped[bool] = mapped_column(server_default=text("false"))
    promote_requested_at: Mapped[datetime | None]
    on_failure: Mapped[str] = mapped_column(server_default="hold")
    probe_interval_seconds: Mapped[float | None]  # NULL, here and below: the value of the setting
    probe_threshold: Mapped[int | None] = mapped_column(Integer())
    probe_timeout_seconds: Mapped[float | None]
    affinity: Mapped[str] = mapped_column(server_default="deployment")
    conversation_keys: Mapped[str | None]
    conversation_idle_seconds: Mapped[float | None]
    conversation_max_age_seconds: Mapped[float | None]
    drain_deadline_seconds: Mapped[float | None]
    forward_authorization: Mapped[str] = mapped_column(server_default="strip")
    calls_per_second: Mapped[float | None]  # NULL, here and below: no limit
    calls_in_flight: Mapped[int | None] = mapped_column(Integer())
    created_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    updated_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(f"name ~ '{AGENT_NAME_PATTERN}'", name="name_valid"),
        CheckConstraint("status IN ('BuildOnly', 'Ready', 'Failed', 'Deleted')", name="status_known"),
        CheckConstraint("acp_type IN ('sync', 'async', 'agentic')", name="acp_type_known"),
        CheckConstraint("agent_input_type IN ('text', 'json')", name="agent_input_type_known"),
        CheckConstraint("legacy_error_style IN ('http', 'jsonrpc')", name="legacy_error_style_known"),
        CheckConstraint("auto_promote IN ('never', 'first', 'always')", name="auto_promote_known"),
        CheckConstraint("on_failure IN ('hold', 'rollback')", name="on_failure_known"),
        CheckConstraint(
            "probe_interval_seconds > 0 AND probe_threshold > 0 AND probe_timeout_seconds > 0", name="probes_positive"
        ),
        CheckConstraint("affinity IN ('none', 'deployment', 'instance')", name="affinity_known"),
        CheckConstraint("conversation_keys IN ('a2a', 'acp')", name="conversation_keys_known"),
        CheckConstraint(
            "conversation_idle_seconds > 0 AND conversation_max_age_seconds > 0 AND drain_deadline_seconds > 0",
            name="conversations_positive",
        ),
        CheckConstraint("forward_authorization IN ('strip', 'pass')", name="forward_authorization_known"),
        CheckConstraint("calls_per_second > 0 AND calls_in_flight > 0", name="calls_positive"),
        CheckConstraint("generation >= 0 AND event_seq >= generation", name="counters_consistent"),
        CheckConstraint("(status = 'Deleted') = (deleted_at IS NOT NULL)", name="deleted_status"),
        CheckConstraint("deleted_at IS NULL OR production_deployment_id IS NULL", name="deleted_serves_nothing"),
        CheckConstraint("(registered_at IS NULL) = (registered_message_id IS NULL)", name="registered_pair"),
        ForeignKeyConstraint(
            ["production_deployment_id", "id"],
            ["deployments.id", "deployments.agent_id"],
            name="agents_production_is_own_deployment",
            use_alter=True,
        ),
        Index("agents_name_of_living_key", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
        Index("agents_name_deleted_at_idx", "name", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
        # Lists skip what is deleted without reading it.
        # Not `deleted_at IS NULL`: a lookup by name that is planned on an empty table could scan these from end to end.
        Index("agents_not_deleted_created_at_id_idx", "created_at", "id", postgresql_where=text("status <> 'Deleted'")),
        Index("agents_not_deleted_id_idx", "id", postgresql_where=text("status <> 'Deleted'")),
    )


class Deployment(Base):
    """A version of an agent."""

    __tablename__ = "deployments"

    id: Mapped[str] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id"))
    docker_image: Mapped[str | None]
    registration_metadata: Mapped[dict[str, Any] | None]
    status: Mapped[str]
    status_reason: Mapped[str | None]
    status_changed_at: Mapped[datetime]
    acp_url: Mapped[str | None]
    rpc_path: Mapped[str] = mapped_column(server_default=DEFAULT_RPC_PATH)
    health_path: Mapped[str] = mapped_column(server_default=DEFAULT_HEALTH_PATH)
    error_style: Mapped[str] = mapped_column(server_default="http")
    is_production: Mapped[bool] = mapped_column(server_default=text("false"))
    sgp_deploy_id: Mapped[str | None]
    helm_release_name: Mapped[str | None]
    registered_at: Mapped[datetime | None]
    registered_message_id: Mapped[UUID | None]
    first_registered_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    promoted_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]
    # Whether its pods are rows of `instances`. Then `acp_url` and the paths are those of one of them.
    has_instances: Mapped[bool] = mapped_column(server_default=text("false"))
    draining_since: Mapped[datetime | None]
    drained_at: Mapped[datetime | None]
    # For processes of release 0.1.0 only; the schedule is in `probes`. A later release drops both, with their index.
    probe_due_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    probe_streak: Mapped[int] = mapped_column(Integer(), server_default="0")

    __table_args__ = (
        UniqueConstraint("id", "agent_id", name="deployments_id_agent_id_key"),
        CheckConstraint(f"id ~ '{DEPLOYMENT_ID_PATTERN}'", name="id_valid"),
        CheckConstraint("status IN ('Pending', 'Ready', 'Failed')", name="status_known"),
        CheckConstraint("error_style IN ('http', 'jsonrpc')", name="error_style_known"),
        CheckConstraint("status <> 'Ready' OR acp_url IS NOT NULL OR purged_at IS NOT NULL", name="ready_has_address"),
        CheckConstraint("NOT (is_production AND expires_at IS NOT NULL)", name="production_not_deleted"),
        CheckConstraint("NOT (is_production AND status = 'Pending')", name="production_was_ready"),
        CheckConstraint("purged_at IS NULL OR expires_at IS NOT NULL", name="purged_was_deleted"),
        CheckConstraint("(registered_at IS NULL) = (registered_message_id IS NULL)", name="registered_pair"),
        Index("deployments_one_production_key", "agent_id", unique=True, postgresql_where=text("is_production")),
        Index(
            "deployments_living_agent_id_created_at_id_idx",
            "agent_id",
            "created_at",
            "id",
            postgresql_where=text("expires_at IS NULL"),
        ),
        Index("deployments_probe_due_at_idx", "probe_due_at", postgresql_where=text(PROBED)),
        Index("deployments_pending_since_idx", "status_changed_at", postgresql_where=text(WAITING)),
        Index("deployments_draining_since_idx", "draining_since", postgresql_where=text("draining_since IS NOT NULL")),
        # For retention: the oldest that are not deleted, those deleted first, and the last ones in production.
        Index("deployments_of_age_idx", "created_at", "id", postgresql_where=text("expires_at IS NULL")),
        Index(
            "deployments_to_purge_idx",
            "expires_at",
            "id",
            postgresql_where=text("expires_at IS NOT NULL AND purged_at IS NULL"),
        ),
        Index(
            "deployments_agent_id_promoted_at_idx",
            "agent_id",
            "promoted_at",
            postgresql_where=text("promoted_at IS NOT NULL"),
        ),
    )


class Promotion(Base):
    """A row of the ledger: one change of what serves an agent. The table is append-only."""

    __tablename__ = "promotions"

    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id"), primary_key=True)
    generation: Mapped[int] = mapped_column(primary_key=True)
    cause: Mapped[str]
    actor: Mapped[str]
    reason: Mapped[str | None]
    from_deployment_id: Mapped[str | None]
    from_acp_url: Mapped[str | None]
    from_docker_image: Mapped[str | None]
    to_deployment_id: Mapped[str | None]
    to_acp_url: Mapped[str | None]
    to_docker_image: Mapped[str | None]
    restored: Mapped[int | None]
    at: Mapped[datetime]
    request_id: Mapped[str | None]
    on_behalf_of: Mapped[str | None]

    __table_args__ = (
        CheckConstraint("generation > 0", name="generation_positive"),
        CheckConstraint(
            "cause IN ('first', 'always', 'manual', 'rollback', 'legacy', 'agent_deleted')", name="cause_known"
        ),
        CheckConstraint("restored IS NULL OR (cause = 'rollback' AND restored < generation)", name="restored_is_older"),
        CheckConstraint("to_deployment_id IS NULL OR to_acp_url IS NOT NULL", name="deployment_has_address"),
        Index("promotions_agent_id_at_idx", "agent_id", "at", unique=True),
        Index("promotions_of_deployment_idx", "agent_id", "to_deployment_id", "generation"),
    )


LEDGER_GUARD_FUNCTION = """
CREATE OR REPLACE FUNCTION promotions_are_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'promotions is append-only: % refused', TG_OP
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'promotions_append_only';
END
$$
"""
LEDGER_ROW_GUARD = """
CREATE TRIGGER promotions_refuse_change BEFORE UPDATE OR DELETE ON promotions
FOR EACH ROW EXECUTE FUNCTION promotions_are_append_only()
"""
LEDGER_TABLE_GUARD = """
CREATE TRIGGER promotions_refuse_truncate BEFORE TRUNCATE ON promotions
FOR EACH STATEMENT EXECUTE FUNCTION promotions_are_append_only()
"""
for guard in (LEDGER_GUARD_FUNCTION, LEDGER_ROW_GUARD, LEDGER_TABLE_GUARD):
    event.listen(Promotion.__table__, "after_create", DDL(guard.replace("%", "%%")))  # type: ignore[no-untyped-call]
