"""Deciding a batch, come what may: the database may be away, and one message in it may be poison."""

import asyncio

import structlog

from services.announcement import Announcement
from services.database import Sessions, in_transaction
from services.errors import Unavailable, Unprocessable
from services.registration import Decided, Incoming, Unreadable, register_batch
from workers.outage import Outage
from workers.pause import pause

# Of SQLSTATE: no such table, column or right. Our statements are the same for every message, so none is to blame.
SCHEMA_STATES = "42"
NOT_MIGRATED = "Did 'podium migrate' of this version run?"

log = structlog.get_logger(__name__)


class Decider:
    """Decides batches of one registrar, each in a transaction of its own."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._outage = Outage(action="registrar.database_away", back="registrar.database_back")

    async def decide(self, batch: list[Incoming], stop: asyncio.Event) -> list[Decided] | None:
        """What became of each message, committed; None if the process stops while the database is away."""
        while True:
            try:
                decided = await in_transaction(self._sessions, lambda session: register_batch(session, batch))
            except Exception as error:  # noqa: BLE001 - whatever one message causes must not stop the others
                blameless = isinstance(error, Unavailable) or _has_no_schema(error)
                if not blameless:
                    return await self._isolate(batch, error, stop)
                hint = None if isinstance(error, Unavailable) else NOT_MIGRATED
                await pause(stop, self._outage.failed(error, hint=hint))
                if stop.is_set():
                    return None
            else:
                self._outage.over()
                return decided

    async def _isolate(self, batch: list[Incoming], error: Exception, stop: asyncio.Event) -> list[Decided] | None:
        """Halve the batch until what the database refuses stands alone, and park that: its neighbours are decided."""
        log.warning(
            "The database refuses a batch; looking for the message that is to blame.",
            action="registrar.batch_refused",
            messages=len(batch),
            error=f"{type(error).__name__}: {error}"[:300],
        )
        if len(batch) > 1:
            middle = len(batch) // 2
            earlier = await self.decide(batch[:middle], stop)
            later = await self.decide(batch[middle:], stop) if earlier is not None else None
            return earlier + later if earlier is not None and later is not None else None
        (poison,) = batch
        refused = _refused(poison.content, error)
        return await self.decide([Incoming(refused, poison.envelope)], stop)


def _refused(content: Announcement | Unreadable, error: Exception) -> Unreadable:
    """Under its id and name, unless these are what the database refuses. Raises the error if nothing else is left."""
    why = Unprocessable(f"The database refuses this message: {type(error).__name__}.")
    if isinstance(content, Announcement):
        return Unreadable(why, content.message_id, content.name)
    if content.message_id is None:
        raise error
    return Unreadable(why)


def _has_no_schema(error: Exception) -> bool:
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(state, str) and state.startswith(SCHEMA_STATES)
