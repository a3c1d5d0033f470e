"""A connection that uses the driver directly: for short statements, the work of the ORM takes longer than the query."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import asyncpg
from pydantic_core import from_json

from services.settings import Settings
from services.storage.database import CONNECT_TIMEOUT_SECONDS, async_url
from services.tls import database_options

Row = Mapping[str, Any]

# What statements raise if the server is away or refuses them.
AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

# One generic plan, made once, that looks up each key in an index. It fits tables of any size, even if they were empty
# when it was made. Disabled plan nodes get a high cost, which would trigger JIT compilation, so JIT is off.
_PLANNED_ONCE = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
# A plan for a list, made once while its tables were small, would read them whole when they have grown.
_PLANNED_EACH_TIME = {"plan_cache_mode": "force_custom_plan", "jit": "off"}


class PreparedConnection:
    """A connection of its own, whose statements are prepared once. It opens at the first of them.

    Each statement is a transaction. It must be used by one caller at a time.
    """

    def __init__(
        self,
        settings: Settings,
        sql: Callable[[], tuple[str, ...]],
        *,
        application_name: str,
        options: Mapping[str, str],
        planned_once: bool = True,
    ) -> None:
        """`options` are settings of the session; JSON parameters are given as text.

        With `planned_once`, the statements look up single keys; else each is planned for its parameters, each time.
        """
        self._settings = settings
        self._sql = sql
        self._options = {
            "application_name": application_name,
            **options,
            **(_PLANNED_ONCE if planned_once else _PLANNED_EACH_TIME),
        }
        self._connection: Any = None
        self._statements: tuple[Any, ...] | None = None

    async def read(self, number: int, *values: object) -> list[Row]:
        """Like `fetch`, for a statement that writes nothing: once more on a new connection if the idle one was lost."""
        if self._statements is not None:
            with suppress(*AWAY):
                return await self.fetch(number, *values)
            self.drop()
        return await self.fetch(number, *values)

    async def ask(self, sql: str, *values: object) -> list[Row]:
        """Like `read`, for any statement; the driver prepares each text when it is first asked for."""
        if self._connection is not None:
            try:
                return list(await self._connection.fetch(sql, *values))
            except asyncpg.QueryCanceledError:  # it took too long, and would again
                raise
            except AWAY:
                self.drop()
        await self._connect()
        return list(await self._connection.fetch(sql, *values))

    async def fetch(self, number: int, *values: object) -> list[Row]:
        """The rows of the statement with this number. Raises one of `AWAY`."""
        statements = self._statements if self._statements is not None else await self._connect()
        return list(await statements[number].fetch(*values))

    def drop(self) -> None:
        """Close the connection without waiting; the next `fetch` opens another one."""
        connection, self._connection, self._statements = self._connection, None, None
        if connection is not None:
            connection.terminate()

    async def _connect(self) -> tuple[Any, ...]:
        url = async_url(self._settings.database_url.get_secret_value())
        address, options = url.get_dialect()().create_connect_args(url)
        self.drop()
        self._connection = connection = await asyncpg.connect(
            *address,
            **{"timeout": CONNECT_TIMEOUT_SECONDS, **options, **database_options(self._settings)},
            server_settings=self._options,
        )
        await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=str, decoder=from_json)
        self._statements = statements = tuple([await connection.prepare(each) for each in self._sql()])
        return statements
