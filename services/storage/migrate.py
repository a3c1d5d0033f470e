"""Migration of the database to the schema of this version."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

# An arbitrary number. The lock makes a second `podium migrate` wait for the first.
_LOCK = text("SELECT pg_advisory_xact_lock(81985529216486895)")


async def migrate(engine: AsyncEngine) -> tuple[str | None, str | None]:
    """Migrate to the newest revision; returns the revisions before and after. A second time changes nothing."""
    async with engine.begin() as connection:
        await connection.execute(_LOCK)
        return await connection.run_sync(_upgrade)


async def is_current(engine: AsyncEngine) -> bool:
    """Whether the database has the schema of this version."""
    async with engine.connect() as connection:
        current = await connection.run_sync(_revision)
    return current == ScriptDirectory.from_config(_config()).get_current_head()


def _upgrade(connection: Connection) -> tuple[str | None, str | None]:
    before = _revision(connection)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return before, _revision(connection)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations").replace("%", "%%"))
    return config
