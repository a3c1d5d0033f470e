"""Bringing the database to the schema that this version needs."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

# Any number; it keeps two `podium migrate` from working at once.
_LOCK = text("SELECT pg_advisory_xact_lock(81985529216486895)")


async def migrate(engine: AsyncEngine) -> tuple[str | None, str | None]:
    """The schema's revision before and after; running it again changes nothing."""
    async with engine.begin() as connection:
        await connection.execute(_LOCK)
        return await connection.run_sync(_upgrade)


async def is_current(engine: AsyncEngine) -> bool:
    """Whether the database has the schema that this version needs."""
    async with engine.connect() as connection:
        found = await connection.run_sync(_revision)
    return found == ScriptDirectory.from_config(_config()).get_current_head()


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
