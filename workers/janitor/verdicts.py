"""Verdicts that come at the same time share a transaction: when many pods die at once, they are told of in time."""

import asyncio
from collections.abc import Sequence

from services.domain.health_policy import ProbeResult
from services.domain.state import AgentSnapshot
from services.errors import Unavailable
from services.health.probes import give_verdicts
from services.storage.database import Sessions, in_transaction

MOST_AT_ONCE = 200


class Verdicts:
    """Takes what probes have found, and decides as much of it as waits in one go."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._waiting: list[tuple[ProbeResult, asyncio.Future[AgentSnapshot | None]]] = []
        self._news = asyncio.Event()

    async def give(self, result: ProbeResult) -> AgentSnapshot | None:
        """The agent after this probe, once that is committed; None if it has to be decided alone.

        That is so where somebody else holds the agent, and where a batch was refused as a whole. Raises
        `Unavailable` while the database is away.
        """
        given: asyncio.Future[AgentSnapshot | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((result, given))
        self._news.set()
        return await given

    async def run(self) -> None:
        """Decide until cancelled; who waits then is cancelled with whoever asked for it."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
                results = [result for result, _ in batch]
                states = await self._decided(results)
                for (_, given), state in zip(batch, states, strict=True):
                    if given.done():
                        continue
                    if isinstance(state, Unavailable):
                        given.set_exception(state)
                    else:
                        given.set_result(state)

    async def _decided(self, results: list[ProbeResult]) -> Sequence[AgentSnapshot | Unavailable | None]:
        try:
            return await in_transaction(self._sessions, lambda session: give_verdicts(session, results))
        except Unavailable as error:
            return [error] * len(results)
        except Exception:  # noqa: BLE001 - whatever it was, each alone will show whose fault it is
            return [None] * len(results)
