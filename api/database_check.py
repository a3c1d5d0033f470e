"""Whether the database answers, on a connection of its own: a pool in full use says nothing about the database."""

import asyncio

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.tls import certificate_problem

LIMIT_SECONDS = 2
_QUESTION = text("SELECT 1")


class DatabaseCheck:
    """The check of one process. Requests that arrive during a check share its result."""

    def __init__(self, engine: AsyncEngine) -> None:
        """`engine` has one connection and is used for nothing else."""
        self._engine = engine
        self._running: asyncio.Task[str | None] | None = None

    async def failure(self) -> str | None:
        """Why the database cannot be used; None if it answers."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._ask())
        return await asyncio.shield(self._running)

    async def _ask(self) -> str | None:
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                await self._ask_twice()
        except TimeoutError:
            return f"no answer within {LIMIT_SECONDS} s"
        except (SQLAlchemyError, OSError) as error:
            return certificate_problem(error) or "cannot be reached"
        return None

    async def _ask_twice(self) -> None:
        """Ask again on a new connection if the kept one is lost, as after a restart of the database."""
        try:
            await self._ask_once()
        except DBAPIError as exc:
            if not exc.connection_invalidated:
                raise
            await self._ask_once()

    async def _ask_once(self) -> None:
        async with self._engine.connect() as connection:
            await connection.execute(_QUESTION)
