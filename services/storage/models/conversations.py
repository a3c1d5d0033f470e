"""Conversations: keys that callers send, and the deployment whose calls each key belongs to."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import DDL, CheckConstraint, ForeignKeyConstraint, Index, event
from sqlalchemy.orm import Mapped, mapped_column

from services.storage.models.base import CLOCK, Base


class Conversation(Base):
    """The deployment, and maybe the instance, that a conversation is pinned to. Its key is stored as a digest only."""

    __tablename__ = "conversations"

    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
    key_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    deployment_id: Mapped[str]
    last_seen_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    preview: Mapped[bool | None] = mapped_column()
    """Whether it began on the deployment's own route, and not on production's; NULL in rows of version 0.1."""
    instance_id: Mapped[str | None]
    started_at: Mapped[datetime | None] = mapped_column(server_default=CLOCK)
    """NULL in rows of version 0.1."""

    __table_args__ = (
        CheckConstraint("octet_length(key_sha256) = 32", name="digest_whole"),
        ForeignKeyConstraint(
            ["deployment_id", "agent_id"],
            ["deployments.id", "deployments.agent_id"],
            name="conversations_of_own_deployment",
        ),
        Index("conversations_last_seen_at_idx", "last_seen_at"),
        Index("conversations_deployment_id_idx", "deployment_id", "last_seen_at"),
    )


# For API processes of release 0.1.0. A later release drops it.
VIEW = """
CREATE OR REPLACE VIEW mcp_sessions AS
SELECT agent_id, key_sha256 AS session_sha256, deployment_id, last_seen_at, preview FROM conversations
"""
event.listen(Conversation.__table__, "after_create", DDL(VIEW))  # type: ignore[no-untyped-call]
