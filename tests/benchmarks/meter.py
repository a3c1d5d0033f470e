"""What work costs: CPU of the programs and of the servers, WAL and statements, between two moments."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from services.settings import Settings
from services.storage.database import async_url, make_engine
from tests.benchmarks.cpu import cpu_seconds
from tests.benchmarks.measure import Bench

# The meter's own statements are in another database than those that it counts.
_SAMPLE = text("""
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') AS wal,
    coalesce(sum(calls) FILTER (WHERE dbid <> (SELECT oid FROM pg_database WHERE datname = current_database())), 0)
        AS statements,
    (SELECT sum(pg_database_size(oid)) FROM pg_database) AS stored
FROM pg_stat_statements
""")
POSTGRES, RABBITMQ = "PostgreSQL", "RabbitMQ"
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Sample:
    """What was used up to a moment."""

    at: float
    cpu: Mapping[str, float]
    """Seconds, by program."""
    wal: float
    """Bytes of the server's write-ahead log."""
    statements: float
    """Statements that programs have sent, `BEGIN` and `COMMIT` included; each one is a round trip."""
    stored: float
    """Bytes of all databases."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a number of pieces of work have cost."""

    count: int
    before: Sample
    after: Sample

    @property
    def per_second(self) -> float:
        """The rate."""
        return self.count / (self.after.at - self.before.at)

    def cpu_ms(self, program: str) -> float:
        """Milliseconds of CPU of a program for each piece."""
        return (self.after.cpu[program] - self.before.cpu[program]) * 1000 / self.count

    @property
    def cores(self) -> float:
        """How many cores all programs used together."""
        used = sum(self.after.cpu[name] - self.before.cpu[name] for name in self.after.cpu)
        return used / (self.after.at - self.before.at)

    @property
    def wal_bytes(self) -> float:
        """Bytes of the write-ahead log for each piece."""
        return (self.after.wal - self.before.wal) / self.count

    @property
    def statements(self) -> float:
        """Statements for each piece."""
        return (self.after.statements - self.before.statements) / self.count

    @property
    def stored_bytes(self) -> float:
        """Bytes by which the databases grew for each piece, with rows that the next vacuum removes."""
        return (self.after.stored - self.before.stored) / self.count


class Meter:
    """Samples of the private servers and of further programs."""

    def __init__(self, bench: Bench, connection: AsyncConnection) -> None:
        self._servers = {
            POSTGRES: bench.database_pid,
            RABBITMQ: bench.servers.rabbitmq.pid if bench.servers.rabbitmq else None,
        }
        self._connection = connection

    async def sample(self, **programs: int | None) -> Sample:
        """What was used up to now, by the servers and by programs of these names and process ids."""
        row = (await self._connection.execute(_SAMPLE)).one()
        cpu = {name: cpu_seconds(pid) for name, pid in {**self._servers, **programs}.items()}
        return Sample(perf_counter(), cpu, float(row.wal), float(row.statements), float(row.stored))


@asynccontextmanager
async def open_meter(bench: Bench) -> AsyncIterator[Meter]:
    """A meter; starts the private PostgreSQL again, so that it counts statements."""
    postgres = bench.servers.postgres
    assert postgres is not None, "costs are measured on private servers only"
    engine = create_async_engine(async_url(bench.servers.database_url), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'"))
    await engine.dispose()
    await postgres.stop()
    await postgres.start()
    async with engine.connect() as connection:
        await connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_stat_statements"))
        yield Meter(bench, connection)
    await engine.dispose()


@asynccontextmanager
async def connection_to(settings: Settings) -> AsyncIterator[AsyncConnection]:
    """A connection to the database of a program under measurement."""
    engine = make_engine(settings, application_name="bench", pool_size=1)
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        yield connection
    await engine.dispose()


async def at_least(connection: AsyncConnection, query: str, count: int) -> int:
    """The count of this query as soon as it is as large."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (found := int((await connection.execute(text(query))).scalar_one())) < count:
            await asyncio.sleep(POLL_SECONDS)
    return found
