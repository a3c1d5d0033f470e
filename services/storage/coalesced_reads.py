"""Reads that callers share: what is asked for while a read is under way is read together after it, on one connection.

A caller never joins a read that began before it, so it sees everything that was committed before it asked. Statements
are prepared once per connection and sent to the driver directly: the work of the ORM takes longer than such a query.
"""

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Self

import asyncpg
import structlog
from pydantic_core import from_json
from sqlalchemy import Executable
from sqlalchemy.dialects import postgresql

from services.errors import Unavailable
from services.settings import Settings
from services.storage.database import async_url

# One generic plan, made once, that looks up each key in an index. It fits tables of any size, even if they were empty
# when it was made. Disabled plan nodes get a high cost, which would trigger JIT compilation, so JIT is off.
_PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
# Keys in one statement. More wait for the next one, so that no caller waits for very many rows.
KEYS_MAX = 500
# A read fails twice as late as one statement, since it may wait for the one before it.
STATEMENTS_WAITED_FOR = 2

Row = Mapping[str, Any]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class KeyedRead:
    """A statement whose first parameter is an array of keys. Each row that it returns has its key as `key`."""

    sql: str

    @classmethod
    def of(cls, statement: Executable) -> Self:
        """The SQL of a SQLAlchemy statement with one bound parameter."""
        return cls(str(statement.compile(dialect=postgresql.asyncpg.dialect())))  # type: ignore[attr-defined, no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Pending:
    """A caller that waits for the rows of its key."""

    key: Hashable
    rows: asyncio.Future[Sequence[Row]]


class CoalescedReads:
    """Reads for one process, on a connection of its own; use it as a context manager.

    It connects on the first read, and again on the next one after a lost connection.
    """

    def __init__(self, settings: Settings, *, application_name: str) -> None:
        self._settings = settings
        self._application_name = application_name
        self._connection: Any = None
        self._prepared: dict[KeyedRead, Any] = {}
        self._pending: dict[KeyedRead, list[_Pending]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._away_since: float | None = None

    async def __aenter__(self) -> Self:
        """Return at once; the connection opens on the first read."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection. Callers that still wait get `Unavailable`."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait((self._reader,))
        for pending in self._pending.values():
            _fail(pending, None)
        self._pending.clear()
        self._drop()

    async def rows(self, read: KeyedRead, key: Hashable) -> Sequence[Row]:
        """The rows of a key, read from the database after this call began.

        Raises `Unavailable` if the database cannot be read, or does not answer within `database_timeout`.
        """
        loop = asyncio.get_running_loop()
        pending = _Pending(key, loop.create_future())
        self._pending.setdefault(read, []).append(pending)
        if self._reader is None:
            self._reader = loop.create_task(self._read(), name="coalesced reads")
        try:
            async with asyncio.timeout(self._settings.database_timeout.total_seconds()):
                return await pending.rows
        except TimeoutError as exc:
            raise Unavailable("The database does not respond in time: try again.") from exc

    async def _read(self) -> None:
        """Read for all callers that wait, one batch after another, until none waits."""
        try:
            while self._pending:
                # Taken before the statement is sent. Callers that arrive from here on join a later read.
                read = next(iter(self._pending))
                batch = self._pending.pop(read)
                batch, rest = batch[:KEYS_MAX], batch[KEYS_MAX:]
                if rest:
                    self._pending[read] = rest
                try:
                    await self._read_batch(read, batch)
                except Exception as exc:  # noqa: BLE001 - a bug fails this batch only; later callers must not hang
                    _fail(batch, exc)
                finally:
                    _fail(batch, None)
        finally:
            self._reader = None

    async def _read_batch(self, read: KeyedRead, batch: list[_Pending]) -> None:
        keys = list({each.key for each in batch})
        seconds = self._settings.database_timeout.total_seconds() / STATEMENTS_WAITED_FOR
        try:
            async with asyncio.timeout(seconds):
                rows = await self._fetch(read, keys)
        except _AWAY as exc:
            self._drop()
            if self._away_since is None:
                self._away_since = monotonic()
                log.warning("The database cannot be read.", action="reads.away", cause=repr(exc)[:200])
            return
        if self._away_since is not None:
            away_seconds = round(monotonic() - self._away_since, 1)
            log.info("The database is read again.", action="reads.back", away_seconds=away_seconds)
            self._away_since = None
        found: dict[Hashable, list[Row]] = {}
        for row in rows:
            found.setdefault(row["key"], []).append(row)
        for each in batch:
            if not each.rows.done():
                each.rows.set_result(found.get(each.key, ()))

    async def _fetch(self, read: KeyedRead, keys: list[Hashable]) -> Sequence[Row]:
        """The current rows of these keys. Retries once on a new connection if the idle one was lost."""
        if self._connection is not None:
            with suppress(*_AWAY):
                return list(await (await self._statement(read)).fetch(keys))
            self._drop()
        await self._connect()
        return list(await (await self._statement(read)).fetch(keys))

    async def _statement(self, read: KeyedRead) -> Any:  # noqa: ANN401 - asyncpg has no types
        statement = self._prepared.get(read)
        if statement is None:
            statement = self._prepared[read] = await self._connection.prepare(read.sql)
        return statement

    async def _connect(self) -> None:
        url = async_url(self._settings.database_url.get_secret_value())
        address, options = url.get_dialect()().create_connect_args(url)
        milliseconds = int(self._settings.database_timeout.total_seconds() * 1000 / STATEMENTS_WAITED_FOR)
        self._connection = await asyncpg.connect(
            *address,
            **options,
            server_settings={
                "application_name": self._application_name,
                "statement_timeout": str(milliseconds),
                "default_transaction_read_only": "on",
                **_PLANNING,
            },
        )
        await self._connection.set_type_codec("jsonb", schema="pg_catalog", encoder=str, decoder=from_json)

    def _drop(self) -> None:
        connection, self._connection, self._prepared = self._connection, None, {}
        if connection is not None:
            connection.terminate()


def _fail(batch: list[_Pending], error: Exception | None) -> None:
    """Fail all that have no rows yet; without `error`, each with a new `Unavailable`."""
    for each in batch:
        if not each.rows.done():
            each.rows.set_exception(error or Unavailable())
