"""Conversations with calls in flight: they stay open however long a call takes."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

from services.cancellation import background_task
from services.routing.conversations import still_seen
from services.routing.routes import Route
from services.storage.database import Sessions, in_transaction

# How often they are looked through for those that must be updated.
REFRESH_SECONDS = 1.0


@dataclass(slots=True)
class _Active:
    """A conversation with calls in flight."""

    calls: int
    every: float
    seen_at: float


class ActiveConversations:
    """The conversations of this process that have calls in flight: they stay open however long a call takes."""

    def __init__(self) -> None:
        self._active: dict[tuple[UUID, bytes], _Active] = {}

    @contextmanager
    def call(self, route: Route, digest: bytes) -> Iterator[None]:
        """While inside, the conversation has a call in flight."""
        if route.seen_every is None or route.deployment_id is None or route.affinity == "none":
            yield
            return
        key = (route.agent_id, digest)
        active = self._active.setdefault(key, _Active(0, route.seen_every, asyncio.get_running_loop().time()))
        active.calls += 1
        active.every = route.seen_every
        try:
            yield
        finally:
            active.calls -= 1
            if not active.calls:
                self._active.pop(key, None)

    def due(self) -> list[tuple[UUID, bytes]]:
        """Those that must be updated now; they are due again after their own time."""
        now = asyncio.get_running_loop().time()
        due = [key for key, each in self._active.items() if now >= each.seen_at + each.every]
        for key in due:
            self._active[key].seen_at = now
        return due


@asynccontextmanager
async def open_active_conversations(sessions: Sessions) -> AsyncGenerator[ActiveConversations, None]:
    """Keeps conversations with calls in flight open until the end of the context."""
    active = ActiveConversations()

    async def refresh() -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            if due := active.due():
                with suppress(Exception):  # the next round tries again
                    await in_transaction(sessions, lambda session, due=due: still_seen(session, due))  # type: ignore[misc]

    async with background_task(refresh(), name="active conversations"):
        yield active
