"""Reads the routes of concurrent calls in batches. A call never joins a read that began before it.

So each call sees everything that was committed before it arrived, in every process, and no cache needs invalidation.
"""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any, Self

import asyncpg
import structlog

from services.errors import Unavailable
from services.routing.conversations import ConversationTerms
from services.routing.routes import (
    READ_ROUTES,
    Route,
    RouteKey,
    Row,
    arguments,
    key_of,
    read_routes_of_conversations,
    route_of,
)
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

log = structlog.get_logger(__name__)

_PendingRead = tuple[RouteKey, asyncio.Future[Row | None]]


class RouteResolver:
    """Resolves routes for one process, on a dedicated connection; use it as a context manager.

    It connects on the first call, and reconnects on the next call after a lost connection.
    """

    def __init__(self, settings: Settings, *, application_name: str) -> None:
        self._settings = settings
        self._application_name = application_name
        self._connection: Any = None
        self._statements: tuple[Any, Any] | None = None
        self._pending: list[_PendingRead] = []
        self._reader: asyncio.Task[None] | None = None
        self._away_since: float | None = None

    async def __aenter__(self) -> Self:
        """Return at once; the connection opens on the first call."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection. Calls that still wait get `Unavailable`."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait((self._reader,))
        _fail(self._pending, None)
        self._drop()

    async def find(self, key: RouteKey) -> Route:
        """The route of a key, read from the database after this call began.

        Raises as `route_of` does, and `Unavailable` if no answer comes within twice `route_timeout`.
        """
        loop = asyncio.get_running_loop()
        row: asyncio.Future[Row | None] = loop.create_future()
        self._pending.append((key, row))
        if self._reader is None:
            self._reader = loop.create_task(self._read())
        return route_of(key, await row)

    async def _read(self) -> None:
        """Read for all pending calls, one batch after another, until none is pending."""
        try:
            while self._pending:
                # Taken before the statement is sent. Calls that arrive from here on join the next read.
                batch, self._pending = self._pending, []
                try:
                    await self._read_batch(batch)
                except Exception as exc:  # noqa: BLE001 - a bug fails this batch only; later calls must not hang
                    _fail(batch, exc)
                finally:
                    _fail(batch, None)
        finally:
            self._reader = None

    async def _read_batch(self, batch: list[_PendingRead]) -> None:
        try:
            async with asyncio.timeout(self._settings.route_timeout.total_seconds()):
                rows = await self._rows({key for key, _ in batch})
        except _AWAY as exc:
            self._drop()
            if self._away_since is None:
                self._away_since = monotonic()
                log.warning("Routes cannot be read: calls get 503.", action="routes.away", cause=repr(exc)[:200])
            return
        if self._away_since is not None:
            away_seconds = round(monotonic() - self._away_since, 1)
            log.info("Routes are read again.", action="routes.back", away_seconds=away_seconds)
            self._away_since = None
        found = {key_of(row): row for row in rows}
        for key, pending in batch:
            if not pending.done():
                pending.set_result(found.get(key))

    async def _rows(self, keys: Collection[RouteKey]) -> list[Row]:
        """The current rows of these keys. Retries once on a new connection if the idle one was lost."""
        values = arguments(keys)
        # The statement with sessions costs a fifth more, so a batch without sessions uses the other one.
        with_sessions = any(each.session is not None for each in keys)
        if self._statements is not None:
            with suppress(*_AWAY):
                return list(await self._statements[with_sessions].fetch(*values))
            self._drop()
        statements = await self._connect()
        return list(await statements[with_sessions].fetch(*values))

    async def _connect(self) -> tuple[Any, Any]:
        url = async_url(self._settings.database_url.get_secret_value())
        address, options = url.get_dialect()().create_connect_args(url)
        milliseconds = int(self._settings.route_timeout.total_seconds() * 1000)
        self._connection = connection = await asyncpg.connect(
            *address,
            **options,
            server_settings={
                "application_name": self._application_name,
                "statement_timeout": str(milliseconds),
                "default_transaction_read_only": "on",
                **_PLANNING,
            },
        )
        of_conversations = read_routes_of_conversations(ConversationTerms.of(self._settings))
        self._statements = await connection.prepare(READ_ROUTES), await connection.prepare(of_conversations)
        return self._statements

    def _drop(self) -> None:
        connection, self._connection, self._statements = self._connection, None, None
        if connection is not None:
            connection.terminate()


def _fail(batch: list[_PendingRead], error: Exception | None) -> None:
    """Fail all reads that have no result yet; without `error`, each with a new `Unavailable`."""
    for _, pending in batch:
        if not pending.done():
            pending.set_exception(error or Unavailable())
