"""Instances: the pods of deployments whose announcements name them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from contracts.fields import DEPLOYMENT_ID_PATTERN
from services.storage.models.base import CLOCK, Base


class Instance(Base):
    """One pod of a deployment whose `has_instances` is true. `instance_id` is empty for a pod that names none.

    A deployment without named instances has no rows here: its own row holds the address of its only pod.
    """

    __tablename__ = "instances"

    deployment_id: Mapped[str] = mapped_column(primary_key=True)
    instance_id: Mapped[str] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID]
    acp_url: Mapped[str]
    rpc_path: Mapped[str]
    health_path: Mapped[str]
    status: Mapped[str]
    status_reason: Mapped[str | None]
    status_changed_at: Mapped[datetime]
    registered_at: Mapped[datetime]
    registered_message_id: Mapped[UUID]
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(f"instance_id = '' OR instance_id ~ '{DEPLOYMENT_ID_PATTERN}'", name="id_valid"),
        CheckConstraint("status IN ('Pending', 'Ready', 'Failed')", name="status_known"),
        CheckConstraint("status <> 'Ready' OR ready_at IS NOT NULL", name="ready_since"),
        ForeignKeyConstraint(
            ["deployment_id", "agent_id"],
            ["deployments.id", "deployments.agent_id"],
            name="instances_of_own_deployment",
        ),
        Index("instances_not_ready_since_idx", "status_changed_at", postgresql_where=text("status <> 'Ready'")),
        {"postgresql_with": {"fillfactor": "70"}},
    )


class DepartedInstance(Base):
    """An instance that is gone, with the precedence of its last message: an older announcement does not bring it back.

    By agent name, since a goodbye can arrive before the first announcement of its agent.
    """

    __tablename__ = "departed_instances"

    agent_name: Mapped[str] = mapped_column(primary_key=True)
    deployment_id: Mapped[str] = mapped_column(primary_key=True)
    instance_id: Mapped[str] = mapped_column(primary_key=True)
    registered_at: Mapped[datetime]
    message_id: Mapped[UUID]
    departed_at: Mapped[datetime] = mapped_column(server_default=CLOCK)

    __table_args__ = (Index("departed_instances_departed_at_idx", "departed_at"),)
