"""Concurrent transactions whose statements run in an order that the test chooses."""

import asyncio
from collections.abc import Awaitable, Sequence
from itertools import chain, repeat
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import await_only

POLL_SECONDS = 0.0005

_BLOCKED = text("""
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND cardinality(pg_blocking_pids(pid)) > 0
""")


class Interleaving:
    """Several concurrent tasks; each stops before each statement and each commit until it gets a turn.

    One per engine, because it listens to the engine's events for the engine's lifetime.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._tasks: list[asyncio.Future[Any]] = []
        self._gates: dict[asyncio.Future[Any], asyncio.Future[None]] = {}
        event.listen(engine.sync_engine, "before_cursor_execute", self._stop)
        event.listen(engine.sync_engine, "commit", self._stop)

    async def run(self, works: Sequence[Awaitable[Any]], turns: Sequence[int] | None) -> list[Any]:
        """The result of each task. A turn is an index into the tasks that are stopped at that moment.

        When the turns are used up, the first stopped task always goes on; so without turns, nothing overlaps. With
        None, all tasks run freely.
        """
        running: list[asyncio.Future[Any]] = [asyncio.ensure_future(work) for work in works]
        if turns is not None and len(running) > 1:
            self._tasks = running
            async with self._engine.connect() as observer:
                await observer.execution_options(isolation_level="AUTOCOMMIT")
                for turn in chain(turns, repeat(0)):
                    await self._until_all_wait(observer)
                    waiting = [task for task in running if task in self._gates]
                    if not waiting:
                        break
                    self._gates.pop(waiting[turn % len(waiting)]).set_result(None)
            self._tasks = []
        return await asyncio.gather(*running)

    async def _until_all_wait(self, observer: AsyncConnection) -> None:
        """Return once each task is stopped, waits for a lock that a stopped task holds, or has ended."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            running_tasks = [task for task in self._tasks if not task.done() and task not in self._gates]
            if not running_tasks:
                return
            if self._gates and (await observer.scalar(_BLOCKED) or 0) >= len(running_tasks):
                return

    def _stop(self, *_: Any) -> None:
        """Stop the current task. The engine calls this before each statement and each commit."""
        task = asyncio.current_task()
        if task is not None and task in self._tasks:
            self._gates[task] = asyncio.get_running_loop().create_future()
            await_only(self._gates[task])
