"""The inbox and the parked messages."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Identity,
    Index,
    Integer,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from services.storage.models.base import CLOCK, Base


class Registration(Base):
    """A row of the inbox: the outcome of one message."""

    __tablename__ = "registrations"

    message_id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_name: Mapped[str]
    deployment_id: Mapped[str | None]
    registered_at: Mapped[datetime | None]
    dated_at: Mapped[datetime | None]  # the pod's own time, if it was too far ahead and registered_at is ours
    outcome: Mapped[str]
    reason: Mapped[str | None]
    received_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    seq: Mapped[int] = mapped_column(Identity(always=True))
    instance_id: Mapped[str | None]

    __table_args__ = (
        CheckConstraint("outcome IN ('Registered', 'Stale', 'Shadowed', 'Rejected', 'Departed')", name="outcome_known"),
        Index("registrations_agent_name_seq_idx", "agent_name", "seq"),
        Index("registrations_received_at_idx", "received_at"),
    )


class Parked(Base):
    """A message that cannot be applied, stored until an operator drops it or its retention ends."""

    __tablename__ = "parked"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    key: Mapped[str] = mapped_column(unique=True)
    message_id: Mapped[UUID | None]
    agent_name: Mapped[str | None]
    deployment_id: Mapped[str | None]
    reason: Mapped[str]
    error: Mapped[str]
    routing_key: Mapped[str]
    headers: Mapped[dict[str, Any]]
    body: Mapped[bytes]
    attempts: Mapped[int] = mapped_column(Integer(), server_default="1")
    received_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    retried_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("attempts > 0", name="attempts_positive"),
        Index("parked_received_at_idx", "received_at"),
        Index("parked_agent_name_received_at_idx", "agent_name", "received_at"),
    )
