"""Changes that arrive at the same time are made together: one transaction, one commit.

While a transaction is under way, further changes wait and form the next one. None waits while nothing is under way. A
change whose agent is locked, or that cannot be made with others, is made alone; so are those of its agent that follow
soon, since what changes an agent in one moment often does so in the next.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Generic, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from services.errors import Busy, DatabaseFailed, StatementTimeout, Unavailable
from services.settings import Settings
from services.storage.database import Sessions, close_engine, in_transaction, make_engine

T = TypeVar("T")
R = TypeVar("R")

# Makes all changes that it can without waiting for a lock; returns None for each of the others.
Work = Callable[[Sequence[T]], Awaitable[Sequence[R | None]]]

# A batch holds the locks of its agents while it waits for another lock.
LOCK_TIMEOUT = timedelta(milliseconds=100)
# Changes that wait for their batch. More would wait longer than their callers do.
WAITING_MAX = 5_000
# How long changes of an agent are made alone after one that could not be made with others.
ALONE_SECONDS = 0.1

log = structlog.get_logger(__name__)


class TooManyWaiting(Busy):
    """Too many changes wait already: try again."""


@dataclass(slots=True)
class _Waiting(Generic[T, R]):
    """A change that waits for its result."""

    agent: Hashable
    change: T
    result: asyncio.Future[R | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batches(Generic[T, R]):
    """Makes one kind of changes of one process in batches, one batch at a time."""

    def __init__(
        self,
        settings: Settings,
        work: Work[T, R],
        *,
        must_be_first: Callable[[T], bool] | None = None,
        on_made: Callable[[Sequence[R | None]], None] | None = None,
    ) -> None:
        """`work` must not wait for a lock for longer than `LOCK_TIMEOUT`; `on_made` gets the results of each commit.

        A change that `must_be_first` waits for the next batch if there is another one of its agent before it; so do
        those that follow it, so each agent's changes keep their order.
        """
        self._work = work
        self._must_be_first = must_be_first
        self._on_made = on_made
        self._size = settings.batch_size
        self._seconds = settings.database_timeout.total_seconds()
        self._waiting: list[_Waiting[T, R]] = []
        self._alone: Counter[Hashable] = Counter()
        self._runner: asyncio.Task[None] | None = None

    async def make(self, agent: Hashable, change: T) -> R | None:
        """The committed result of a change of this agent; None if it must be made alone.

        Raises `Unavailable` if the database is unavailable or does not respond in time; the change may have been
        committed all the same.
        """
        if self._alone[agent]:
            return None
        if len(self._waiting) >= WAITING_MAX:
            raise TooManyWaiting
        waiting: _Waiting[T, R] = _Waiting(agent, change)
        self._waiting.append(waiting)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name="batches of changes")
        try:
            async with asyncio.timeout(self._seconds):
                return await waiting.result
        except TimeoutError as exc:
            raise Unavailable("The database does not respond in time: try again.") from exc

    @contextmanager
    def alone(self, agent: Hashable) -> Iterator[None]:
        """While inside, further changes of this agent are made alone as well, and so after this one."""
        self._alone[agent] += 1
        try:
            yield
        finally:
            self._release(agent)

    async def close(self) -> None:
        """Wait for the batch under way. Changes that still wait get `Unavailable`."""
        for each in self._waiting:
            _settle(each, Unavailable())
        self._waiting.clear()
        if self._runner is not None:
            await asyncio.wait({self._runner})

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._next()
                for each in batch:
                    if self._alone[each.agent]:
                        _settle(each, None)
                # The callers of those that are done have left.
                if batch := [each for each in batch if not each.result.done()]:
                    await self._make(batch)
        finally:
            self._runner = None

    def _next(self) -> tuple[list[_Waiting[T, R]], list[_Waiting[T, R]]]:
        """The changes of the next batch, and those that wait for a later one."""
        if self._must_be_first is None:
            return self._waiting[: self._size], self._waiting[self._size :]
        batch: list[_Waiting[T, R]] = []
        put_off: list[_Waiting[T, R]] = []
        taken: set[Hashable] = set()
        waiting: set[Hashable] = set()
        # All that wait, so that many changes of one agent delay no other.
        for position, each in enumerate(self._waiting):
            if len(batch) == self._size:
                return batch, put_off + self._waiting[position:]
            if each.agent in waiting or (each.agent in taken and self._must_be_first(each.change)):
                waiting.add(each.agent)
                put_off.append(each)
            else:
                taken.add(each.agent)
                batch.append(each)
        return batch, put_off

    def _release(self, agent: Hashable) -> None:
        self._alone[agent] -= 1
        if not self._alone[agent]:
            del self._alone[agent]

    def _keep_alone(self, agents: set[Hashable]) -> None:
        loop = asyncio.get_running_loop()
        for agent in agents:
            self._alone[agent] += 1
            loop.call_later(ALONE_SECONDS, self._release, agent)

    async def _make(self, batch: list[_Waiting[T, R]]) -> None:
        changes = [each.change for each in batch]
        results: Sequence[R | None] = [None] * len(batch)
        try:
            results = await self._work(changes)
            if self._on_made is not None:
                self._on_made(results)
        except (Busy, StatementTimeout, DatabaseFailed):
            pass  # one of them may be the cause, so each is made alone
        except Unavailable as error:
            for each in batch:
                _settle(each, type(error)(error.message))
            return
        except Exception as error:  # noqa: BLE001 - an error that one change causes must not stop the others
            log.warning(
                "A batch of changes failed; each is made alone.",
                action="api.batch_failed",
                changes=len(batch),
                error=f"{type(error).__name__}: {error}"[:300],
            )
        # Before any caller goes on, so that none of their agents' next changes comes before them.
        self._keep_alone({each.agent for each, result in zip(batch, results, strict=True) if result is None})
        for each, result in zip(batch, results, strict=True):
            _settle(each, result)


def _settle(waiting: _Waiting[T, R], result: R | Unavailable | None) -> None:
    if waiting.result.done():
        return
    if isinstance(result, Unavailable):
        waiting.result.set_exception(result)
    else:
        waiting.result.set_result(result)


@asynccontextmanager
async def open_batches(
    settings: Settings,
    work: Callable[[AsyncSession, Sequence[T]], Awaitable[Sequence[R | None]]],
    *,
    on_events: Callable[[], None],
    on_made: Callable[[Sequence[R | None]], None],
    application_name: str,
) -> AsyncGenerator[Batches[T, R], None]:
    """The batches of one kind of changes, on a connection of their own, which the first change opens.

    `on_events` is called after each commit that wrote events, and `on_made` after each one, with its results.
    """
    engine = make_engine(impatient(settings), application_name=application_name, pool_size=1)
    sessions = Sessions(engine, timeout=settings.database_timeout, on_events=on_events)

    async def in_one_transaction(changes: Sequence[T]) -> Sequence[R | None]:
        return await in_transaction(sessions, lambda session: work(session, changes))

    batches = Batches(settings, in_one_transaction, on_made=on_made)
    try:
        yield batches
    finally:
        await batches.close()
        await close_engine(engine)


def impatient(settings: Settings) -> Settings:
    """The settings of connections for batches."""
    return settings.model_copy(update={"lock_timeout": min(settings.lock_timeout or LOCK_TIMEOUT, LOCK_TIMEOUT)})
