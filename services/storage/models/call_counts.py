"""How many calls each API process has seen, per agent, version and minute."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from services.storage.models.base import Base


class CallCount(Base):
    """The calls of one minute that one API process has counted for one version of one agent.

    `deployment_id` is empty for the legacy address. `process_id` is another one each time a process starts, and only
    that process writes the row, so it can write its whole count again without counting a call twice.

    There is no foreign key: its check would lock a row of `agents` for each insert. Retention removes the rows.
    """

    __tablename__ = "call_counts"

    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
    minute: Mapped[datetime] = mapped_column(primary_key=True)
    deployment_id: Mapped[str] = mapped_column(primary_key=True)
    process_id: Mapped[UUID] = mapped_column(primary_key=True)
    calls: Mapped[int] = mapped_column(Integer())
    agent_failures: Mapped[int] = mapped_column(Integer())
    gateway_failures: Mapped[int] = mapped_column(Integer())
    answered: Mapped[int] = mapped_column(Integer())
    answer_seconds: Mapped[float]
    longest_seconds: Mapped[float]

    __table_args__ = (
        CheckConstraint(
            "agent_failures >= 0 AND gateway_failures >= 0 AND calls > 0 "
            "AND agent_failures + gateway_failures <= calls AND answered BETWEEN 0 AND calls "
            "AND answer_seconds >= 0 AND longest_seconds >= 0",
            name="consistent",
        ),
        Index("call_counts_minute_idx", "minute"),
        # Room in each page: the counts of the minute that runs change every few seconds, and touch no index.
        {"postgresql_with": {"fillfactor": "70"}},
    )
