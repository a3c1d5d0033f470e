"""The outbox."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Identity,
    Index,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from services.storage.models.base import CLOCK, Base, Xid8

# The order of all events must keep the order of each agent's sequence. A transaction that gets its id before it locks
# the agent may write after one with a greater id. So an event takes the greatest id that had ended when it was written,
# if that is greater than the id of its own transaction.
EVENT_XID = "GREATEST(pg_current_xact_id(), (pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1)::text::xid8)"


class OutboxEvent(Base):
    """An event, committed together with the change that it reports."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    event_id: Mapped[UUID]
    type: Mapped[str]
    agent_id: Mapped[UUID]  # no foreign key: events are written only under the agent's lock
    agent_name: Mapped[str]
    subject: Mapped[str]
    sequence: Mapped[int]
    generation: Mapped[int]
    payload: Mapped[dict[str, Any]]
    traceparent: Mapped[str | None]
    xid: Mapped[int] = mapped_column(Xid8(), server_default=text(EVENT_XID))
    created_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    published_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("agent_id", "sequence", name="outbox_agent_id_sequence_key"),
        CheckConstraint("sequence > 0", name="sequence_positive"),
        Index("outbox_unpublished_idx", "id", postgresql_where=text("published_at IS NULL")),
        Index("outbox_xid_id_idx", "xid", "id"),
    )


class LowWater(Base):
    """The last removed event of an agent; the greatest of all agents is the low-water mark of all events."""

    __tablename__ = "outbox_low_water"

    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
    sequence: Mapped[int]
    xid: Mapped[int] = mapped_column(Xid8())
    id: Mapped[int]

    __table_args__ = (Index("outbox_low_water_xid_id_idx", "xid", "id"),)


class EventEpoch(Base):
    """A database cluster that has held the data; the newest epoch is the current cluster's.

    `system_identifier` is the cluster's own, NULL where the role may not read it.
    """

    __tablename__ = "event_epochs"

    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    system_identifier: Mapped[int | None]
    began_at: Mapped[datetime] = mapped_column(server_default=CLOCK)

    __table_args__ = (CheckConstraint("epoch >= 0 AND epoch < 32768", name="epoch_valid"),)
