"""Migration of the database to the schema that this version needs, while the previous version keeps working.

Each revision is a transaction of its own. A statement that needs a strong lock waits for it only for a moment, because
all later transactions on the table queue behind it; then the revision is rolled back and tried again. Indexes are built
concurrently (`services.migrations.online`).
"""

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.storage.roles import protect

# An arbitrary number: one process at a time migrates. The lock belongs to the session, since revisions commit.
_TRY_LOCK = text("SELECT pg_try_advisory_lock(81985529216486895)")
_UNLOCK = text("SELECT pg_advisory_unlock(81985529216486895)")
# A process that waits must not hold a snapshot: an index that is built concurrently waits for all of them.
LOCK_POLL_SECONDS = 0.25
# Longer than nearly all transactions of Podium, shorter than what a caller of the API notices.
LOCK_ATTEMPT = timedelta(seconds=1)
LOCK_PAUSE_SECONDS = 1.0
LOCK_NOT_AVAILABLE = "55P03"
MAX_WAIT = timedelta(minutes=10)

_SETTINGS = (
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    f"SET lock_timeout = '{int(LOCK_ATTEMPT.total_seconds() * 1000)}ms'",
)


class MigrationBlocked(Exception):
    """A migration did not get a lock in time. Nothing is half done: run `podium migrate` again."""


async def migrate(
    engine: AsyncEngine, *, report: Callable[[str], None] = lambda _: None, max_wait: timedelta = MAX_WAIT
) -> tuple[str | None, str | None]:
    """Upgrade the schema; returns its revision before and after. Running it again changes nothing.

    `engine` should be made without a statement timeout. `report` gets a sentence whenever the migration has to wait.
    Raises `MigrationBlocked` if another transaction holds a lock, or another process migrates, longer than `max_wait`.
    """
    deadline = asyncio.get_running_loop().time() + max_wait.total_seconds()
    async with engine.connect() as connection:
        await _wait_for_other_migrations(connection, deadline, report)
        try:
            before = await connection.run_sync(_revision)
            await connection.commit()
            await _upgrade_with_retries(connection, deadline, report)
            await protect(connection)
            await connection.commit()
            return before, await connection.run_sync(_revision)
        finally:
            await connection.rollback()
            await connection.execute(_UNLOCK)
            # The session keeps its settings; it must not go back to a pool.
            await connection.invalidate()


async def is_current(engine: AsyncEngine) -> bool:
    """Whether the database has the schema of this version."""
    async with engine.connect() as connection:
        current = await connection.run_sync(_revision)
    return current == ScriptDirectory.from_config(_config()).get_current_head()


async def _wait_for_other_migrations(
    connection: AsyncConnection, deadline: float, report: Callable[[str], None]
) -> None:
    waiting = False
    while not await connection.scalar(_TRY_LOCK):
        await connection.commit()
        if asyncio.get_running_loop().time() > deadline:
            raise MigrationBlocked("Another process is still migrating this database.")
        if not waiting:
            report("Another process is migrating this database; waiting for it.")
        waiting = True
        await asyncio.sleep(LOCK_POLL_SECONDS)
    await connection.commit()


async def _upgrade_with_retries(connection: AsyncConnection, deadline: float, report: Callable[[str], None]) -> None:
    while True:
        try:
            await connection.run_sync(_upgrade)
        except DBAPIError as error:
            await connection.rollback()
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            if asyncio.get_running_loop().time() > deadline:
                raise MigrationBlocked("Other transactions hold a lock that the migration needs.") from error
            report("Other transactions hold a lock that the migration needs; trying again.")
        else:
            return
        await asyncio.sleep(random.uniform(0.5, 1.5) * LOCK_PAUSE_SECONDS)  # noqa: S311 - jitter, not a secret


def _upgrade(connection: Connection) -> None:
    for statement in _SETTINGS:
        connection.exec_driver_sql(statement)
    connection.commit()
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations").replace("%", "%%"))
    return config
