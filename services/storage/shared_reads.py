"""Reads that callers share: what is asked for while a read is under way is read together after it, in one statement.

A caller never joins a read that began before it. So each one sees everything that was committed before it asked, in
every process, and no cache needs invalidation. Statements go to the driver directly: the work of the ORM takes longer
than such a query.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import structlog

from services.errors import Unavailable
from services.settings import Settings
from services.storage.driver import AWAY, PreparedConnection, Row

K = TypeVar("K", bound=Hashable)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outages:
    """How the log tells of an outage of the database, and of its end."""

    away: str
    away_action: str
    back: str
    back_action: str


class SharedReads(ABC, Generic[K]):
    """Reads rows by key for one process, on a connection of its own; use it as a context manager.

    It connects on the first read, and again on the next one after a lost connection.
    """

    def __init__(self, settings: Settings, *, application_name: str, timeout: timedelta, outages: Outages) -> None:
        """`timeout` is the time limit of one statement; a caller waits for two at most."""
        self._settings = settings
        self._timeout = timeout
        self._outages = outages
        milliseconds = int(timeout.total_seconds() * 1000)
        self._connection = PreparedConnection(
            settings,
            self._sql,
            application_name=application_name,
            options={"statement_timeout": str(milliseconds), "default_transaction_read_only": "on"},
        )
        self._pending: list[tuple[K, asyncio.Future[Row | None]]] = []
        self._reader: asyncio.Task[None] | None = None
        self._away_since: float | None = None

    @abstractmethod
    def _sql(self) -> tuple[str, ...]:
        """The statements, which are prepared once per connection."""

    @abstractmethod
    def _chosen(self, keys: Collection[K]) -> tuple[int, tuple[Any, ...]]:
        """Which statement reads these keys, and its parameters."""

    @abstractmethod
    def _key_of(self, row: Row) -> K:
        """The key that a row belongs to; at most one row has it."""

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
        _fail(self._pending, None)
        self._connection.drop()

    async def row(self, key: K) -> Row | None:
        """The row of a key, read from the database after this call began; None if there is none.

        Raises `Unavailable` if no answer comes within twice the time limit.
        """
        loop = asyncio.get_running_loop()
        row: asyncio.Future[Row | None] = loop.create_future()
        self._pending.append((key, row))
        if self._reader is None:
            self._reader = loop.create_task(self._read())
        return await row

    async def _read(self) -> None:
        """Read for all pending callers, one batch after another, until none is pending."""
        try:
            while self._pending:
                # Taken before the statement is sent. Callers that arrive from here on join the next read.
                batch, self._pending = self._pending, []
                try:
                    await self._read_batch(batch)
                except Exception as exc:  # noqa: BLE001 - a bug fails this batch only; later callers must not hang
                    _fail(batch, exc)
                finally:
                    _fail(batch, None)
        finally:
            self._reader = None

    async def _read_batch(self, batch: list[tuple[K, asyncio.Future[Row | None]]]) -> None:
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                rows = await self._rows({key for key, _ in batch})
        except AWAY as exc:
            self._connection.drop()
            if self._away_since is None:
                self._away_since = monotonic()
                log.warning(self._outages.away, action=self._outages.away_action, cause=repr(exc)[:200])
            return
        if self._away_since is not None:
            away_seconds = round(monotonic() - self._away_since, 1)
            log.info(self._outages.back, action=self._outages.back_action, away_seconds=away_seconds)
            self._away_since = None
        found = {self._key_of(row): row for row in rows}
        for key, pending in batch:
            if not pending.done():
                pending.set_result(found.get(key))

    async def _rows(self, keys: Collection[K]) -> list[Row]:
        """The current rows of these keys."""
        chosen, values = self._chosen(keys)
        return await self._connection.read(chosen, *values)


def _fail(batch: list[tuple[K, asyncio.Future[Row | None]]], error: Exception | None) -> None:
    """Fail all reads that have no result yet; without `error`, each with a new `Unavailable`."""
    for _, pending in batch:
        if not pending.done():
            pending.set_exception(error or Unavailable())
