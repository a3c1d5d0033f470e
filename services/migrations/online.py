"""Schema changes that let readers and writers of the table go on."""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import op
from sqlalchemy import Connection, text

_INVALID = text("""
SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid
""")


def create_index(name: str, definition: str, *, unique: bool = False) -> None:
    """Build an index without a lock that blocks writers. Can be run again after an error.

    `definition` is what follows the name: `ON table (column) WHERE ...`. Commits the transaction of the revision, so
    everything before it in the revision must be safe to run again.
    """
    kind = "UNIQUE INDEX" if unique else "INDEX"
    with _outside_transaction() as connection:
        if connection.scalar(_INVALID, {"name": name}):
            # What an interrupted attempt left behind.
            op.execute(f"DROP INDEX CONCURRENTLY {name}")
        op.execute(f"CREATE {kind} CONCURRENTLY IF NOT EXISTS {name} {definition}")


def drop_index(name: str) -> None:
    """Drop an index without a lock that blocks readers or writers. Commits the transaction of the revision."""
    with _outside_transaction():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


@contextmanager
def _outside_transaction() -> Iterator[Connection]:
    """No transaction and no lock timeout: the statement waits for older transactions, and blocks none meanwhile."""
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        before = connection.scalar(text("SELECT current_setting('lock_timeout')"))
        op.execute("SET lock_timeout = 0")
        try:
            yield connection
        finally:
            connection.execute(text("SELECT set_config('lock_timeout', :before, false)"), {"before": before})
