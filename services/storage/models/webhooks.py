"""Webhooks: who gets events by HTTP, how far each has got, and the last attempts."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, Integer, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from services.storage.models.base import CLOCK, Base, Xid8


class Webhook(Base):
    """A receiver of events: of one agent, or (`agent_id` is NULL) of all.

    Every event up to the cursor, in the order of all events, has been accepted, is not wanted, or is behind the
    position of its agent. The secrets are stored as they are, because signing needs them.
    """

    __tablename__ = "webhooks"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    url: Mapped[str]
    description: Mapped[str | None]
    owner: Mapped[str | None]
    agent_id: Mapped[UUID | None]  # no foreign key: rows of agents are never removed
    agent_name: Mapped[str | None]
    event_types: Mapped[list[str] | None] = mapped_column(ARRAY(Text()))
    secret: Mapped[bytes]
    previous_secret: Mapped[bytes | None]
    previous_until: Mapped[datetime | None]
    rotated_at: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(server_default=text("'active'"))
    status_reason: Mapped[str | None]
    status_changed_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    cursor_xid: Mapped[int] = mapped_column(Xid8())
    cursor_id: Mapped[int]
    failing_since: Mapped[datetime | None]
    missed: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    created_by: Mapped[str]

    __table_args__ = (
        CheckConstraint("url ~ '^https?://'", name="url_http"),
        CheckConstraint("(agent_id IS NULL) = (agent_name IS NULL)", name="agent_named"),
        CheckConstraint("cardinality(event_types) > 0", name="event_types_not_empty"),
        CheckConstraint(
            "octet_length(secret) BETWEEN 24 AND 64 AND octet_length(previous_secret) BETWEEN 24 AND 64",
            name="secrets_complete",
        ),
        CheckConstraint("(previous_secret IS NULL) = (previous_until IS NULL)", name="previous_ends"),
        CheckConstraint("status IN ('active', 'paused', 'disabled')", name="status_known"),
        CheckConstraint("(status = 'disabled') = (status_reason IS NOT NULL)", name="disabled_has_reason"),
        CheckConstraint("missed >= 0", name="missed_counted"),
    )


class WebhookPosition(Base):
    """An agent with events that its webhook has not accepted: those after `sequence`, up to `last_sequence`.

    A row ends with the last of them. While one is sent, `claim` names the sender and `due_at` is when its claim ends;
    otherwise the next attempt is due then.
    """

    __tablename__ = "webhook_positions"

    webhook_id: Mapped[UUID] = mapped_column(ForeignKey(Webhook.id, ondelete="CASCADE"), primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
    sequence: Mapped[int]
    last_sequence: Mapped[int]
    attempts: Mapped[int] = mapped_column(Integer(), server_default=text("0"))
    claim: Mapped[UUID | None]
    due_at: Mapped[datetime] = mapped_column(server_default=CLOCK)

    __table_args__ = (
        CheckConstraint("sequence >= 0 AND sequence < last_sequence", name="something_waits"),
        CheckConstraint("attempts >= 0", name="attempts_counted"),
        # Claims of either must not look at the other: after an outage thousands of retries are due.
        Index("webhook_positions_first_attempts_idx", "webhook_id", "due_at", postgresql_where=text("attempts <= 0")),
        Index("webhook_positions_retries_idx", "webhook_id", "due_at", postgresql_where=text("attempts > 0")),
    )


class WebhookDelivery(Base):
    """One attempt to deliver an event. The last ones of each webhook are kept."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    webhook_id: Mapped[UUID] = mapped_column(ForeignKey(Webhook.id, ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    event_id: Mapped[UUID]
    event_type: Mapped[str]
    agent_id: Mapped[UUID]
    agent_name: Mapped[str]
    sequence: Mapped[int]
    attempt: Mapped[int] = mapped_column(Integer())
    outcome: Mapped[str]
    status: Mapped[int | None] = mapped_column(Integer())
    detail: Mapped[str]
    seconds: Mapped[float]

    __table_args__ = (
        CheckConstraint("outcome IN ('accepted', 'refused', 'failed', 'denied')", name="outcome_known"),
        CheckConstraint("(status IS NOT NULL) = (outcome IN ('accepted', 'refused'))", name="answered_has_status"),
        CheckConstraint("char_length(detail) <= 200", name="detail_short"),
        Index("webhook_deliveries_webhook_id_id_idx", "webhook_id", "id"),
    )
