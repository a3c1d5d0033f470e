"""MCP sessions."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKeyConstraint,
    Index,
)
from sqlalchemy.orm import Mapped, mapped_column

from services.storage.models.base import CLOCK, Base


class McpSession(Base):
    """An MCP session and the deployment that issued it. The session id is a secret, so only its digest is stored."""

    __tablename__ = "mcp_sessions"

    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
    session_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    deployment_id: Mapped[str]
    last_seen_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    preview: Mapped[bool | None] = mapped_column()
    """Whether the deployment's own route issued it, and not production's; NULL in rows of version 0.1."""

    __table_args__ = (
        CheckConstraint("octet_length(session_sha256) = 32", name="digest_whole"),
        ForeignKeyConstraint(
            ["deployment_id", "agent_id"],
            ["deployments.id", "deployments.agent_id"],
            name="mcp_sessions_of_own_deployment",
        ),
        Index("mcp_sessions_last_seen_at_idx", "last_seen_at"),
    )
