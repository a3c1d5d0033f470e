"""Deciding a batch, also while the database is unavailable, or if it refuses or locks out one of the messages."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.announcement import Announcement
from services.errors import Busy, Unprocessable
from services.registration.batch import Decided, Incoming, Terms, Unreadable, register_batch, register_unlocked
from services.storage.database import Sessions, in_transaction
from workers.fault import Fault, cannot_park, fault_of, has_no_schema
from workers.registrar.spans import TransactionSpans
from workers.retry import Outage, pause

if TYPE_CHECKING:
    from services.tracing.tracer import Tracer

MIGRATION_HINT = "Run 'podium migrate' of this version."
# Attempts at a single message while it is in doubt whether the message or the server is at fault: some seconds in all.
ATTEMPTS_IN_DOUBT = 6

# The outcome of each message; None: its agent is locked.
Outcomes = list[Decided | None]
# `register_batch` or `register_unlocked`.
Register = Callable[..., Awaitable[Sequence[Decided | None]]]

log = structlog.get_logger(__name__)


class DryRun(Exception):
    """Rolls back a transaction that worked."""


class Decider:
    """Decides the batches of one registrar, each in its own transaction."""

    def __init__(self, sessions: Sessions, terms: Terms, tracer: "Tracer | None" = None) -> None:
        self._sessions = sessions
        self._tracer = tracer
        self._terms = terms
        self._outage = Outage(failure_action="registrar.database_away", recovery_action="registrar.database_back")

    async def decide(self, batch: list[Incoming], stop: asyncio.Event) -> Outcomes | None:
        """The committed outcome of each message; None if `stop` was set while the database was unavailable.

        The outcome of a message is None if another transaction holds a lock that it needs for longer than the lock
        timeout: decide it again later. A message that the database refuses is parked. Raises the database's error if
        it refuses to park it as well.
        """
        failures_in_doubt, database_works = 0, False
        while True:
            try:
                decided = await self._register(batch)
            except Busy:
                self._outage.over()
                return await self._halve(batch, stop) if len(batch) > 1 else [None]
            except Exception as error:  # noqa: BLE001 - an error that one message causes must not stop the others
                fault = fault_of(error)
                if fault is not Fault.SERVER and len(batch) > 1:
                    _log_refusal(batch, error)
                    return await self._halve(batch, stop)
                if fault is Fault.MESSAGE or database_works:
                    parked = await self._park(batch[0], error)
                    if parked is not None:
                        return list(parked)
                failures_in_doubt += fault is Fault.IN_DOUBT
                database_works = failures_in_doubt >= ATTEMPTS_IN_DOUBT and await self._could_park(batch[0])
                if database_works:
                    continue
                await pause(stop, self._outage.failed(error, hint=MIGRATION_HINT if has_no_schema(error) else None))
                if stop.is_set():
                    return None
            else:
                self._outage.over()
                return list(decided)

    async def _register(self, batch: list[Incoming]) -> Sequence[Decided | None]:
        """Decide all messages, or those whose agents are not locked. Raises `Busy` if another lock is not free."""
        try:
            return await self._attempt(batch, register_batch)
        except Busy:
            return await self._attempt(batch, register_unlocked)

    async def _attempt(self, batch: list[Incoming], register: Register) -> Sequence[Decided | None]:
        spans = None if self._tracer is None else TransactionSpans(self._tracer, batch)
        decided = await in_transaction(self._sessions, partial(register, batch=batch, terms=self._terms))
        if spans is not None:
            spans.end(decided)
        return decided

    async def _halve(self, batch: list[Incoming], stop: asyncio.Event) -> Outcomes | None:
        """Decide each half separately, recursively, so that only the message at fault is left undecided.

        If an agent is locked in the first half, its messages in the second half wait behind those of the first.
        """
        middle = len(batch) // 2
        earlier = await self.decide(batch[:middle], stop)
        if earlier is None:
            return None
        locked = {message.content.name for message, outcome in zip(batch, earlier, strict=False) if outcome is None}
        free = [message.content.name not in locked for message in batch[middle:]]
        later = await self.decide(list(compress(batch[middle:], free)), stop) if any(free) else []
        if later is None:
            return None
        outcomes = iter(later)
        return earlier + [next(outcomes) if is_free else None for is_free in free]

    async def _could_park(self, poison: Incoming) -> bool:
        """Whether the database works, that is, could park this message; a dry run, which is rolled back.

        If so, the message is at fault when it fails once more.
        """

        async def park_and_undo(session: AsyncSession) -> None:
            await register_batch(session, _parkable_batches(poison, DryRun())[-1])
            raise DryRun

        try:
            with suppress(DryRun):
                await in_transaction(self._sessions, park_and_undo)
        except Exception as error:  # noqa: BLE001 - as above
            return not cannot_park(error)
        return True

    async def _park(self, poison: Incoming, error: Exception) -> list[Decided] | None:
        """Park the message with the database's error as the reason; None if the database can park nothing now.

        The row has the message's id and agent name, unless the database refuses these too. Raises `error` if the
        database refuses the row without them as well.
        """
        _log_refusal([poison], error)
        for batch in _parkable_batches(poison, error):
            try:
                return await in_transaction(self._sessions, partial(register_batch, batch=batch))
            except Exception as parking_error:  # noqa: BLE001 - as above
                if cannot_park(parking_error):
                    return None
        raise error


def _parkable_batches(poison: Incoming, error: Exception) -> list[list[Incoming]]:
    """Batches that park the message: one with its id and agent name if they are known, and one without."""
    reason = Unprocessable(f"The database refuses this message: {type(error).__name__}.")
    contents = [Unreadable(reason)]
    if isinstance(poison.content, Announcement):
        contents.insert(0, Unreadable(reason, poison.content.message_id, poison.content.name))
    return [[Incoming(content, poison.envelope)] for content in contents]


def _log_refusal(batch: list[Incoming], error: Exception) -> None:
    log.warning(
        "The database refused a message; splitting the batch to find and park it.",
        action="registrar.batch_refused",
        messages=len(batch),
        error=f"{type(error).__name__}: {error}"[:300],
    )
