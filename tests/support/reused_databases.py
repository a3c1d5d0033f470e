"""Databases for tests, one after the other: emptying one takes a tenth of the time that a clone takes.

A database is used again only if nothing but rows has changed in it; what a test gets cannot be told from a clone. It
gets another name each time, so that nobody who still knows the earlier name reaches it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from uuid import uuid4

import asyncpg
from sqlalchemy.engine import make_url

from services.storage.roles import OF_MIGRATIONS
from tests.support.databases import EMPTY

Connection: TypeAlias = Any  # asyncpg ships no types

# Sessions that were closed end a moment later. Whoever needs longer was forgotten.
GRACE_SECONDS = 0.5
# The planner takes a table that was never analyzed for one of ten pages, if it has no more.
MOST_PAGES = 10

_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'"
_CATALOGUES = """
SELECT oid::regclass::text FROM pg_class
WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared
    AND oid NOT IN ('pg_statistic'::regclass, 'pg_statistic_ext_data'::regclass)
"""
# Every change of a catalogue removes a row, or writes one with a newer transaction id.
_CATALOGUE = """
SELECT '{name}', concat_ws(' ', count(*), count(*) FILTER (WHERE age(xmin) < age('{migrated}'::xid))) FROM {name}
"""
_ELSE = (
    """
SELECT 'statistics', string_agg(concat_ws(' ', relname, reltuples, relpages, relallvisible), ', ' ORDER BY relname)
FROM pg_class WHERE relnamespace = 'public'::regnamespace
""",
    """
SELECT 'analyzed', count(*)::text FROM pg_statistic JOIN pg_class ON pg_class.oid = starelid
WHERE relnamespace = 'public'::regnamespace
""",
    f"""
SELECT 'size', (max(pg_relation_size(oid)) <= {MOST_PAGES} * current_setting('block_size')::int)::text
FROM pg_class WHERE relnamespace = 'public'::regnamespace
""",
    """
SELECT 'database', (to_jsonb(d) - ARRAY['oid', 'datname', 'datfrozenxid', 'datminmxid'])::text
FROM pg_database AS d WHERE datname = current_database()
""",
    """
SELECT 'settings', count(*)::text FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase
WHERE datname = current_database()
""",
    *(f"SELECT '{name}', string_agg({name}::text, ', ') FROM {name}" for name in OF_MIGRATIONS),
)


class ReusedDatabases:
    """Clones of a template, for one test at a time; `reused_databases` makes them."""

    def __init__(self, server_url: str, template: str, administrator: Connection) -> None:
        self._server_url = server_url
        self._template = template
        self._administrator = administrator
        self._free: list[str] = []
        self._look = ""
        self._fresh: Mapping[str, str | None] = {}

    async def take(self) -> str:
        """The name of a database that looks like a fresh clone."""
        name = f"podium_test_{uuid4().hex}"
        if self._free and await self._is_left(self._free[-1]):
            await self._administrator.execute(f'ALTER DATABASE "{self._free.pop()}" RENAME TO "{name}"')
        else:
            await self._administrator.execute(f'CREATE DATABASE "{name}" TEMPLATE "{self._template}"')
        return name

    async def give_back(self, name: str) -> frozenset[str]:
        """Empty it for the next test; or drop it, if more than rows has changed, and tell what."""
        changed = await self._emptied(name)
        if changed:
            await self._drop(name)
        else:
            self._free.append(name)
        return changed

    async def close(self) -> None:
        """Drop what is left."""
        while self._free:
            await self._drop(self._free.pop())

    async def learn(self) -> None:
        """Remember what a fresh clone looks like."""
        async with self.connected(self._template) as connection:
            migrated = await connection.fetchval("SELECT pg_current_xact_id()::xid::text")
            names = [row[0] for row in await connection.fetch(_CATALOGUES)]
            catalogues = [_CATALOGUE.format(name=name, migrated=migrated) for name in names]
            self._look = " UNION ALL ".join([*catalogues, *_ELSE])
            self._fresh = dict(await connection.fetch(self._look))
        if not await self._is_left(self._template):
            raise AssertionError("somebody uses the template")

    async def changed(self, connection: Connection) -> frozenset[str]:
        """What this session sees that a fresh clone does not have, other than rows."""
        seen = dict(await connection.fetch(self._look))
        return frozenset(what for what, value in self._fresh.items() if seen[what] != value)

    @asynccontextmanager
    async def connected(self, name: str) -> AsyncIterator[Connection]:
        """A session in one of the databases."""
        connection = await _connect(self._server_url, name)
        try:
            yield connection
        finally:
            await connection.close()

    async def _emptied(self, name: str) -> frozenset[str]:
        if not await self._is_left(name):
            return frozenset({"sessions"})
        try:
            async with self.connected(name) as connection:
                changed = await self.changed(connection)
                if not changed:
                    # Counts of what earlier tests have changed must not bring autovacuum.
                    await connection.execute(f"{EMPTY}; SELECT pg_stat_reset()")
        except asyncpg.PostgresError as error:
            return frozenset({str(error)})
        return changed

    async def _is_left(self, name: str) -> bool:
        """Whether all sessions have ended, after a moment."""
        deadline = time.monotonic() + GRACE_SECONDS
        while await self._administrator.fetchval(_SESSIONS, name):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.002)
        return True

    async def _drop(self, name: str) -> None:
        await self._administrator.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@asynccontextmanager
async def reused_databases(server_url: str, template: str) -> AsyncIterator[ReusedDatabases]:
    """Databases for the tests of one process, while inside."""
    administrator = await _connect(server_url)
    databases = ReusedDatabases(server_url, template, administrator)
    await databases.learn()
    try:
        yield databases
    finally:
        await databases.close()
        await administrator.close()


async def _connect(server_url: str, database: str | None = None) -> Connection:
    url = make_url(server_url).set(drivername="postgresql")
    url = url.set(database=database) if database else url
    return await asyncpg.connect(url.render_as_string(hide_password=False), timeout=10)
