"""Notices changes that have no event: parked messages, outcomes of registrations, and the state of the system.

One statement per process every two seconds, and one more for each set of agents that a visitor's key is bound to; none
while no page that shows them is open.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from api.events.fanout import FanOut
from services.cancellation import background_task
from services.domain.identity import Identity
from services.identities.visibility import visible
from services.storage.database import Sessions
from services.storage.models import Parked, Registration

EVERY = timedelta(seconds=2)
# Longer than two looks are apart, also if the database is slow.
LOOKED_BACK = timedelta(minutes=1)

_STATE = text("""
SELECT
    (SELECT max(received_at) FROM registrations) AS registrations,
    (SELECT max(received_at) FROM parked) AS parked_at, (SELECT count(*) FROM parked) AS parked,
    (SELECT count(*) FROM (SELECT FROM outbox WHERE published_at IS NULL LIMIT 1000) AS e) AS events,
    (SELECT count(*) FROM janitors WHERE panic_since IS NOT NULL) AS panics,
    (SELECT count(*) FROM janitors WHERE seen_at > statement_timestamp() - interval '15 s') AS janitors
""")

# The patterns of a key; None for all agents.
Bound = tuple[str, ...] | None


class Watched:
    """What visitors with the same bound see: `version` grows, and `changed` is set, with each change."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.clients = 0
        self.state: tuple[object, ...] | None = None
        self.changed = asyncio.Event()
        self.version = 0

    def learn(self, state: tuple[object, ...], *, wake: bool) -> None:
        """Compare the state with the last one; `wake` the pages in any case."""
        if state != self.state or wake:
            self.state = state
            self.version += 1
            self.changed.set()
            self.changed = asyncio.Event()


class Watch:
    """The state that open pages of this process wait for."""

    def __init__(self, reads: Sessions, events: FanOut) -> None:
        self._reads = reads
        self._events = events
        self._wanted = asyncio.Event()
        self._watched: dict[Bound, Watched] = {}

    @contextmanager
    def follow(self, identity: Identity) -> Iterator[Watched]:
        """Watch what this visitor sees while inside."""
        watched = self._watched.setdefault(identity.agents, Watched(identity))
        watched.clients += 1
        self._wanted.set()
        try:
            yield watched
        finally:
            watched.clients -= 1
            if not watched.clients and identity.agents is not None:
                del self._watched[identity.agents]
            if not any(each.clients for each in self._watched.values()):
                self._wanted.clear()

    async def run(self) -> None:
        """Watch until cancelled. What cannot be read has not changed."""
        while True:
            await self._wanted.wait()
            for watched in [each for each in self._watched.values() if each.clients]:
                try:
                    async with self._reads() as session:
                        state = await _state(session, watched)
                except (SQLAlchemyError, OSError, TimeoutError):
                    state = watched.state or ()
                watched.learn(state, wake=self._events.ended)
            await asyncio.sleep(EVERY.total_seconds())


async def _state(session: AsyncSession, watched: Watched) -> tuple[object, ...]:
    """What pages for these visitors show, short enough to compare."""
    identity = watched.identity
    if identity.agents is None:
        return tuple((await session.execute(_STATE)).one())
    # The last ones alone, by the index of times.
    is_recent = Registration.received_at > func.statement_timestamp() - LOOKED_BACK
    seen = visible(Registration.agent_name, identity)
    newest = await session.scalar(select(func.max(Registration.received_at)).where(is_recent, seen))
    parked = select(func.max(Parked.received_at), func.count()).where(visible(Parked.agent_name, identity))
    before = watched.state[0] if watched.state else None
    return (newest or before, *(await session.execute(parked)).one())


@asynccontextmanager
async def open_watch(reads: Sessions, events: FanOut) -> AsyncGenerator[Watch, None]:
    """A watch, ended on exit."""
    watch = Watch(reads, events)
    async with background_task(watch.run(), name="console"):
        yield watch
