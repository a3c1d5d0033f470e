"""The schedule of probes, and the janitors that run.

A probe changes its row every interval, so the table is narrow and no row of `deployments` is rewritten.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import DDL, CheckConstraint, Index, Integer, event, text
from sqlalchemy.orm import Mapped, mapped_column

from services.storage.models.base import CLOCK, Base


class Probe(Base):
    """The schedule of the probes of one instance, and their recent results. What is not probed has no row.

    `instance_id` is empty for the pod of a deployment without named instances.

    There is no foreign key: its check would lock a row of `deployments` for each insert. A claim deletes the rows of
    deployments that are no longer probed.
    """

    __tablename__ = "probes"

    deployment_id: Mapped[str] = mapped_column(primary_key=True)
    instance_id: Mapped[str] = mapped_column(primary_key=True, server_default="")
    is_production: Mapped[bool] = mapped_column(server_default=text("false"))
    due_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    streak: Mapped[int] = mapped_column(Integer(), server_default="0")
    failing_since: Mapped[datetime | None]
    failed_by: Mapped[UUID | None]
    confirmed: Mapped[bool] = mapped_column(server_default=text("false"))
    opinion_until: Mapped[datetime | None]
    last_call_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("NOT confirmed OR failed_by IS NOT NULL", name="confirmed_was_failed"),
        Index("probes_is_production_due_at_idx", "is_production", "due_at"),
        # Room in each page: results that do not change the schedule touch no index.
        {"postgresql_with": {"fillfactor": "70"}},
    )


class Janitor(Base):
    """A janitor that runs, or ended without notice. `seen_at` is updated every few seconds."""

    __tablename__ = "janitors"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    seen_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    panic_since: Mapped[datetime | None]
    probed: Mapped[int] = mapped_column(Integer(), server_default="0")
    failing: Mapped[int] = mapped_column(Integer(), server_default="0")
    unknown: Mapped[int] = mapped_column(Integer(), server_default="0")
    unknown_reason: Mapped[str | None]

    __table_args__ = (
        CheckConstraint("failing BETWEEN 0 AND probed AND unknown >= 0", name="counts_consistent"),
        {"postgresql_with": {"fillfactor": "70"}},
    )


# Every new deployment that has an address is due at once, whatever program inserts it.
SCHEDULE_FUNCTION = """
CREATE OR REPLACE FUNCTION schedule_first_probes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO probes (deployment_id, is_production)
    SELECT id, is_production FROM inserted WHERE acp_url IS NOT NULL AND expires_at IS NULL AND NOT has_instances
    ON CONFLICT ON CONSTRAINT probes_pkey DO UPDATE SET due_at = excluded.due_at, streak = 0, failing_since = NULL,
        failed_by = NULL, confirmed = false, opinion_until = NULL, last_call_at = NULL;
    RETURN NULL;
END
$$
"""
SCHEDULE_TRIGGER = """
CREATE OR REPLACE TRIGGER deployments_schedule_first_probes AFTER INSERT ON deployments
REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION schedule_first_probes()
"""
# Registrars of release 0.1.0 write the schedule to `deployments` only. Later releases never update `probe_due_at`, so
# the trigger does not fire for them. It goes when the columns `probe_due_at` and `probe_streak` go.
COPY_FUNCTION = """
CREATE OR REPLACE FUNCTION copy_probe_schedule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO probes AS p (deployment_id, is_production, due_at, streak)
    VALUES (NEW.id, NEW.is_production, NEW.probe_due_at, NEW.probe_streak)
    ON CONFLICT ON CONSTRAINT probes_pkey DO UPDATE SET due_at = excluded.due_at, streak = excluded.streak,
        failing_since = NULL, failed_by = NULL, confirmed = false, opinion_until = NULL;
    RETURN NULL;
END
$$
"""
COPY_TRIGGER = """
CREATE OR REPLACE TRIGGER deployments_copy_probe_schedule AFTER UPDATE OF probe_due_at ON deployments
FOR EACH ROW WHEN (
    NEW.registered_message_id IS DISTINCT FROM OLD.registered_message_id AND NEW.probe_due_at <> OLD.probe_due_at
) EXECUTE FUNCTION copy_probe_schedule()
"""
for statement in (SCHEDULE_FUNCTION, SCHEDULE_TRIGGER, COPY_FUNCTION, COPY_TRIGGER):
    event.listen(Base.metadata, "after_create", DDL(statement.replace("%", "%%")))  # type: ignore[no-untyped-call]
