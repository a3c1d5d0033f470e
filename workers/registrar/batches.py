"""Deciding a batch, come what may: the database may be away, and one message in it may be poison."""

import asyncio
from contextlib import suppress
from functools import partial

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.announcement import Announcement
from services.errors import Unprocessable
from services.registration.batch import Decided, Incoming, Unreadable, register_batch
from services.storage.database import Sessions, in_transaction
from workers.fault import Fault, cannot_park, fault_of, has_no_schema
from workers.outage import Outage
from workers.retry import pause

NOT_MIGRATED = "Did 'podium migrate' of this version run?"
# Attempts at one message, alone, whose failure may be its own or the server's: some seconds altogether.
DOUBTS = 6

log = structlog.get_logger(__name__)


class DryRun(Exception):
    """It could be done, and is undone."""


class Decider:
    """Decides batches of one registrar, each in a transaction of its own."""

    def __init__(self, sessions: Sessions, *, requires_probe: bool) -> None:
        self._sessions = sessions
        self._with_proof = requires_probe
        self._outage = Outage(action="registrar.database_away", back="registrar.database_back")

    async def decide(self, batch: list[Incoming], stop: asyncio.Event) -> list[Decided] | None:
        """What became of each message, committed; None if the process stops while the database is away."""
        doubts, works = 0, False
        while True:
            try:
                decided = await in_transaction(
                    self._sessions, partial(register_batch, batch=batch, requires_probe=self._with_proof)
                )
            except Exception as error:  # noqa: BLE001 - whatever one message causes must not stop the others
                whose = fault_of(error)
                if whose is not Fault.SERVER and len(batch) > 1:
                    return await self._halve(batch, error, stop)
                if whose is Fault.MESSAGE or works:
                    parked = await self._park(batch[0], error)
                    if parked is not None:
                        return parked
                doubts += whose is Fault.IN_DOUBT
                works = doubts >= DOUBTS and await self._could_park(batch[0])
                if works:
                    continue
                await pause(stop, self._outage.failed(error, hint=NOT_MIGRATED if has_no_schema(error) else None))
                if stop.is_set():
                    return None
            else:
                self._outage.over()
                return decided

    async def _halve(self, batch: list[Incoming], error: Exception, stop: asyncio.Event) -> list[Decided] | None:
        """Each half for itself, until what the database refuses stands alone: its neighbours are decided."""
        _tell(batch, error)
        middle = len(batch) // 2
        earlier = await self.decide(batch[:middle], stop)
        later = await self.decide(batch[middle:], stop) if earlier is not None else None
        return earlier + later if earlier is not None and later is not None else None

    async def _could_park(self, poison: Incoming) -> bool:
        """Whether the database works, so that the next failure is the message's own: a rehearsal, undone at its end."""

        async def rehearse(session: AsyncSession) -> None:
            await register_batch(session, _forms(poison, DryRun())[-1])
            raise DryRun

        try:
            with suppress(DryRun):
                await in_transaction(self._sessions, rehearse)
        except Exception as error:  # noqa: BLE001 - as above
            return not cannot_park(error)
        return True

    async def _park(self, poison: Incoming, error: Exception) -> list[Decided] | None:
        """Park the message for what the database says of it; None if the database cannot do even that now.

        Under its id and name, unless these are what is refused. Raises the error if nothing else is left.
        """
        _tell([poison], error)
        for refused in _forms(poison, error):
            try:
                return await in_transaction(self._sessions, partial(register_batch, batch=refused))
            except Exception as again:  # noqa: BLE001 - as above
                if cannot_park(again):
                    return None
        raise error


def _forms(poison: Incoming, error: Exception) -> list[list[Incoming]]:
    """Batches of the message as one to park: under its id and name, and without them."""
    why = Unprocessable(f"The database refuses this message: {type(error).__name__}.")
    forms = [Unreadable(why)]
    if isinstance(poison.content, Announcement):
        forms.insert(0, Unreadable(why, poison.content.message_id, poison.content.name))
    return [[Incoming(form, poison.envelope)] for form in forms]


def _tell(batch: list[Incoming], error: Exception) -> None:
    log.warning(
        "The database refuses a message; looking for it, to park it alone.",
        action="registrar.batch_refused",
        messages=len(batch),
        error=f"{type(error).__name__}: {error}"[:300],
    )
