"""Alembic's environment: runs on the connection that `services.storage.migrate` passes in."""

from alembic import context

from services.storage.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transaction_per_migration=True,  # a lock lasts as long as one revision, and an index can be built outside
)
with context.begin_transaction():
    context.run_migrations()
