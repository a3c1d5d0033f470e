"""Reading routes for each call, many at a time: who comes while a read runs joins the next one, never the running one.

So whatever was committed before a call came in is seen by it, on every process, and nothing has to be invalidated.
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
from services.routing.routes import (
    READ_ROUTES,
    READ_ROUTES_OF_SESSIONS,
    Route,
    RouteKey,
    Row,
    arguments,
    asked_by,
    route_of,
)
from services.settings import Settings
from services.storage.database import async_url

# One plan for all calls, made once. It is right for tables of any size, also if they were empty when it was made:
# keys are looked up in indexes, one by one. Ways that are switched off count as costly, which must not call a compiler.
_PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

log = structlog.get_logger(__name__)

Ask = tuple[RouteKey, asyncio.Future[Row | None]]


class RouteResolver:
    """The one reader of a process, on a connection of its own; use it as a context manager.

    Nothing is connected to before the first question, and a connection that is lost is made anew by the next one.
    """

    def __init__(self, settings: Settings, *, application_name: str) -> None:
        self._settings = settings
        self._application_name = application_name
        self._connection: Any = None
        self._statements: tuple[Any, Any] | None = None
        self._waiting: list[Ask] = []
        self._reading: asyncio.Task[None] | None = None
        self._away_since: float | None = None

    async def __aenter__(self) -> Self:
        """Nothing to wait for."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection; who still waits is told that the database is away."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
        _refuse(self._waiting, None)
        self._drop()

    async def find(self, wanted: RouteKey) -> Route:
        """Where a call goes that has come in by now.

        Raises as `route_of` does; `Unavailable` if the database does not answer within twice the time for a read.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Row | None] = loop.create_future()
        self._waiting.append((wanted, answer))
        if self._reading is None:
            self._reading = loop.create_task(self._read())
        return route_of(wanted, await answer)

    async def _read(self) -> None:
        """Answer all who wait, and those who come meanwhile, one read after another."""
        try:
            while self._waiting:
                # Taken before the statement is sent: whoever comes from here on waits for the next one.
                asked, self._waiting = self._waiting, []
                try:
                    await self._answer(asked)
                except Exception as exc:  # noqa: BLE001 - a defect is told to those who asked; others must not hang
                    _refuse(asked, exc)
                finally:
                    _refuse(asked, None)
        finally:
            self._reading = None

    async def _answer(self, asked: list[Ask]) -> None:
        try:
            async with asyncio.timeout(self._settings.route_timeout.total_seconds()):
                rows = await self._rows({wanted for wanted, _ in asked})
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
        found = {asked_by(row): row for row in rows}
        for wanted, answer in asked:
            if not answer.done():
                answer.set_result(found.get(wanted))

    async def _rows(self, wanted: Collection[RouteKey]) -> list[Row]:
        """What the database says now; a connection that broke while nobody used it is nobody's fault."""
        values = arguments(wanted)
        # Those of sessions cost a fifth more: whoever has none does not wait for that.
        which = any(each.session is not None for each in wanted)
        if self._statements is not None:
            with suppress(*_AWAY):
                return list(await self._statements[which].fetch(*values))
            self._drop()
        statements = await self._connect()
        return list(await statements[which].fetch(*values))

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
        self._statements = await connection.prepare(READ_ROUTES), await connection.prepare(READ_ROUTES_OF_SESSIONS)
        return self._statements

    def _drop(self) -> None:
        connection, self._connection, self._statements = self._connection, None, None
        if connection is not None:
            connection.terminate()


def _refuse(asked: list[Ask], defect: Exception | None) -> None:
    """Tell all who have no answer yet; that the database is away, with an error of its own to each."""
    for _, answer in asked:
        if not answer.done():
            answer.set_exception(defect or Unavailable())
