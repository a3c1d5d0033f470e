"""Databases for tests that share one: a clone takes a sixth of a second, emptying one a few milliseconds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.storage.database import async_url
from services.storage.roles import OF_MIGRATIONS

# Migrations write these rows; whoever changes them has changed more than rows.
_OF_MIGRATIONS = ", ".join(f"'{name}'" for name in OF_MIGRATIONS)
# Neither triggers, which refuse to empty the ledger, nor foreign keys apply to a replica. Sequences begin anew.
EMPTY = f"""
DO $$ DECLARE thing regclass; BEGIN
    SET LOCAL session_replication_role = replica;
    FOR thing IN
        SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
            AND relname NOT IN ({_OF_MIGRATIONS}, 'keys_version') AND pg_relation_size(oid) > 0
    LOOP
        EXECUTE format('DELETE FROM %s', thing);
    END LOOP;
    PERFORM setval(seqrelid::regclass, seqstart, false) FROM pg_sequence;
    DELETE FROM keys_version WHERE (version, id) <> (0, true);
    INSERT INTO keys_version (version) VALUES (0) ON CONFLICT DO NOTHING;
END $$"""


@asynccontextmanager
async def a_database(server_url: str, template: str | None = None) -> AsyncIterator[URL]:
    """A database while inside: a clone of the template, or an empty one."""
    name = f"podium_shared_{uuid4().hex}"
    clone = f' TEMPLATE "{template}"' if template else ""
    await _run_alone(server_url, f'CREATE DATABASE "{name}"{clone}')
    yield async_url(server_url).set(database=name)
    await _run_alone(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


async def empty(engine: AsyncEngine) -> None:
    """Remove all rows but those that a migration wrote."""
    async with engine.begin() as connection:
        await connection.execute(text(EMPTY))


async def _run_alone(server_url: str, statement: str) -> None:
    """Run a statement that cannot run inside a transaction."""
    engine = create_async_engine(async_url(server_url), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()
