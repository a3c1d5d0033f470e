"""Alembic's environment: runs on the connection that `services.storage.migrate` passes in."""

from alembic import context

from services.storage.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
