"""Lists that callers share: all who ask for a list while it is being read get the answer of the next read.

As of single rows (`shared_reads`), a caller never joins a read that began before it, so each one sees everything that
was committed before it asked. Callers share an answer only if they ask the same statement with the same parameters,
and what a caller may see is among the parameters.
"""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import asyncpg
from sqlalchemy import Select
from sqlalchemy.dialects import postgresql

from services.errors import Unavailable
from services.settings import Settings
from services.storage.database import error_of_state
from services.storage.driver import AWAY, PreparedConnection, Row

# So many lists are read at once; one that takes long holds up no other until there are as many of it.
CONNECTIONS = 4

# What the rows of a list become, once for all who share it: the whole answer.
Render = Callable[[Sequence[Row]], Any]


@dataclass(frozen=True, slots=True)
class Question:
    """A statement and its parameters."""

    sql: str
    values: tuple[Hashable, ...]


class ListStatement:
    """A query of a list, as text for the driver."""

    def __init__(self, query: Select[*tuple[Any, ...]]) -> None:
        compiled = query.compile(dialect=postgresql.asyncpg.dialect())  # type: ignore[no-untyped-call]
        self._sql = str(compiled)
        self._parameters = [(name, compiled.params[name]) for name in compiled.positiontup or ()]
        self._required = {each.key for each in compiled.bind_names if each.required}

    def question(self, parameters: Mapping[str, Hashable]) -> Question:
        """The question with these parameters; the query's own values stand for those that have one.

        Raises `KeyError` if another one is missing.
        """
        if missing := self._required - parameters.keys():
            raise KeyError(*missing)
        return Question(self._sql, tuple(parameters.get(name, value) for name, value in self._parameters))


_Key = tuple[Question, Render]


@dataclass(slots=True, eq=False)
class _Answer:
    """What the callers of one read wait for."""

    rows: asyncio.Future[Any]
    callers: int = 0


class SharedLists:
    """Reads lists for one process, on connections of its own; use it as a context manager.

    The connections open when they are needed.
    """

    def __init__(self, settings: Settings, *, application_name: str) -> None:
        # A caller waits for the time of two reads at most: for one under way, and for its own.
        self._seconds = settings.database_timeout.total_seconds() / 2
        options = {
            "statement_timeout": str(int(self._seconds * 1000)),
            "default_transaction_read_only": "on",
        }
        self._idle = [
            PreparedConnection(settings, tuple, application_name=application_name, options=options, planned_once=False)
            for _ in range(CONNECTIONS)
        ]
        self._waiting: dict[_Key, _Answer] = {}
        self._reading: dict[_Key, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        """Return at once; connections open on the first reads."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections. Callers that still wait get `Unavailable`."""
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.rows.set_exception(Unavailable())
        for task in (tasks := list(self._reading.values())):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for connection in self._idle:
            connection.drop()

    async def read(self, question: Question, render: Render) -> Any:  # noqa: ANN401 - what `render` returns
        """What `render` makes of the rows, which are read from the database after this call began.

        It is called once for all callers of one read, which get the same object. Raises `Unavailable`.
        """
        key = question, render
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = _Answer(asyncio.get_running_loop().create_future())
            self._start()
        answer.callers += 1
        try:
            async with asyncio.timeout(2 * self._seconds):
                # A caller that leaves must not take the answer from the others.
                return await asyncio.shield(answer.rows)
        except (*AWAY, Unavailable) as exc:
            raise _error(exc) from exc
        finally:
            answer.callers -= 1
            if not answer.callers and self._waiting.get(key) is answer:
                del self._waiting[key]

    def _start(self) -> None:
        """Begin the reads that wait, as far as there are connections; each list is read by one at a time."""
        while self._idle:
            key = next((key for key in self._waiting if key not in self._reading), None)
            if key is None:
                return
            # Taken before the statement is sent. Callers that ask from here on wait for the next read.
            answer = self._waiting.pop(key)
            self._reading[key] = asyncio.create_task(self._read(key, answer.rows, self._idle.pop()))

    async def _read(self, key: _Key, answer: asyncio.Future[Any], connection: PreparedConnection) -> None:
        question, render = key
        try:
            async with asyncio.timeout(self._seconds):
                rows = await connection.ask(question.sql, *question.values)
            answer.set_result(render(rows))
        except asyncio.CancelledError:
            answer.set_exception(Unavailable())
            raise
        except Exception as exc:  # noqa: BLE001 - a bug fails this list only; its callers must not hang
            if isinstance(exc, AWAY):
                connection.drop()
            answer.set_exception(exc)
        finally:
            self._idle.append(connection)
            del self._reading[key]
            self._start()


def _error(error: BaseException) -> BaseException:
    """An error of its own for each caller; the error itself if it is a defect of Podium."""
    if isinstance(error, TimeoutError):
        return Unavailable("The database does not respond in time: try again.")
    if not isinstance(error, asyncpg.PostgresError):
        return Unavailable()
    domain_error = error_of_state(error.sqlstate or "")
    return domain_error() if domain_error else error
