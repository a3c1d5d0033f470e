"""Deciding a batch, come what may: the database may be away, and one message in it may be poison."""

import asyncio
from enum import Enum, auto
from functools import partial

import structlog
from sqlalchemy.exc import DBAPIError

from services.announcement import Announcement
from services.database import Sessions, in_transaction
from services.errors import DatabaseFailed, Unavailable, Unprocessable
from services.registration import Decided, Incoming, Unreadable, register_batch
from workers.outage import Outage
from workers.pause import pause

# Of SQLSTATE: no such table, column or right. Our statements are the same for every message, so none is to blame.
SCHEMA_STATES = "42"
NOT_MIGRATED = "Did 'podium migrate' of this version run?"
# Attempts at one message, alone, whose failure may be its own or the server's: some seconds altogether.
DOUBTS = 6

log = structlog.get_logger(__name__)


class Blame(Enum):
    """Whose fault a failure is."""

    SERVER = auto()
    MESSAGE = auto()
    IN_DOUBT = auto()


class Decider:
    """Decides batches of one registrar, each in a transaction of its own."""

    def __init__(self, sessions: Sessions, *, with_proof: bool) -> None:
        self._sessions = sessions
        self._with_proof = with_proof
        self._outage = Outage(action="registrar.database_away", back="registrar.database_back")

    async def decide(self, batch: list[Incoming], stop: asyncio.Event) -> list[Decided] | None:
        """What became of each message, committed; None if the process stops while the database is away."""
        doubts = 0
        while True:
            try:
                decided = await in_transaction(
                    self._sessions, partial(register_batch, batch=batch, with_proof=self._with_proof)
                )
            except Exception as error:  # noqa: BLE001 - whatever one message causes must not stop the others
                blame = _blame(error)
                if blame is not Blame.SERVER and len(batch) > 1:
                    return await self._halve(batch, error, stop)
                doubts += blame is Blame.IN_DOUBT
                if blame is Blame.MESSAGE or doubts >= DOUBTS:
                    parked = await self._park(batch[0], error)
                    if parked is not None:
                        return parked
                    doubts = 0
                await pause(stop, self._outage.failed(error, hint=NOT_MIGRATED if _has_no_schema(error) else None))
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

    async def _park(self, poison: Incoming, error: Exception) -> list[Decided] | None:
        """Park the message for what the database says of it; None if the database cannot do even that now.

        Under its id and name, unless these are what is refused. Raises the error if nothing else is left.
        """
        _tell([poison], error)
        why = Unprocessable(f"The database refuses this message: {type(error).__name__}.")
        forms = [Unreadable(why)]
        if isinstance(poison.content, Announcement):
            forms.insert(0, Unreadable(why, poison.content.message_id, poison.content.name))
        for form in forms:
            refused = [Incoming(form, poison.envelope)]
            try:
                return await in_transaction(self._sessions, partial(register_batch, batch=refused))
            except Exception as again:  # noqa: BLE001 - as above
                if _blame(again) is not Blame.MESSAGE:
                    return None
        raise error


def _blame(error: Exception) -> Blame:
    if isinstance(error, DatabaseFailed):
        return Blame.IN_DOUBT
    if isinstance(error, Unavailable) or _has_no_schema(error):
        return Blame.SERVER
    return Blame.MESSAGE if isinstance(error, DBAPIError) else Blame.IN_DOUBT


def _has_no_schema(error: Exception) -> bool:
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(state, str) and state.startswith(SCHEMA_STATES)


def _tell(batch: list[Incoming], error: Exception) -> None:
    log.warning(
        "The database refuses a message; looking for it, to park it alone.",
        action="registrar.batch_refused",
        messages=len(batch),
        error=f"{type(error).__name__}: {error}"[:300],
    )
