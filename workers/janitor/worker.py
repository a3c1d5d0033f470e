"""The janitor: asks every deployment whether it lives, and sees to it that states between announcements are true.

Several of them, in any number of processes, are safe: each deployment is claimed by one of them at a time.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

from services.health.prober import open_prober
from services.health.probes import claim, overdue
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from workers.janitor.health_checks import ALONE_AT_ONCE, HealthChecker
from workers.janitor.verdicts import Verdicts
from workers.outage import Outage
from workers.retry import ended, pause

# One that claims, one for what is overdue, one for verdicts together, one that wakes the relay.
CONNECTIONS = ALONE_AT_ONCE + 4
OVERDUE_AT_ONCE = 100
# While hardly anybody is free, a claim is not worth its transaction.
BUSY_SHARE = 0.2
BUSY_SECONDS = 0.02
END_SECONDS = 1.0

Duty = Callable[[], Awaitable[bool]]


class Janitor:
    """Looks at what is due until told to stop."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions
        self._looks: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; survives the loss of the database. What is being asked then is asked again."""
        async with open_prober(self._settings, concurrency=self._settings.probe_concurrency) as prober:
            verdicts = Verdicts(self._sessions)
            checker = HealthChecker(self._sessions, prober, verdicts)
            giving = asyncio.create_task(verdicts.run(), name="verdicts")
            try:
                await asyncio.gather(
                    self._repeat(stop, lambda: self._check_due(stop, checker)),
                    self._repeat(stop, lambda: self._expire_overdue(checker)),
                )
            finally:
                await self._let_go()
                await ended(giving, END_SECONDS)

    async def _repeat(self, stop: asyncio.Event, duty: Duty) -> None:
        """Do it again at once while it says that there may be more, else after a while."""
        outage = Outage(action="janitor.disconnected", back="janitor.connected")
        while not stop.is_set():
            try:
                more = await duty()
            except Exception as error:  # noqa: BLE001 - whatever it was, what is due stays due
                await pause(stop, outage.failed(error))
                continue
            outage.over()
            if not more:
                # At random, so that of several none always comes right after another and finds nothing.
                jitter = random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
                await pause(stop, self._settings.janitor_poll.total_seconds() * jitter)

    async def _check_due(self, stop: asyncio.Event, checker: HealthChecker) -> bool:
        """Begin to look at those that are due; whether there may be more of them."""
        free = self._settings.probe_concurrency - len(self._looks)
        if free <= self._settings.probe_concurrency * BUSY_SHARE:
            await pause(stop, BUSY_SECONDS)
            return True
        targets = await in_transaction(self._sessions, lambda session: claim(session, self._settings, free))
        for target in targets:
            look = asyncio.create_task(checker.check(target), name=f"check {target.id}")
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
        return len(targets) == free

    async def _expire_overdue(self, checker: HealthChecker) -> bool:
        """Set Failed what has been Pending for too long; whether there may be more of it."""
        deadline = self._settings.pending_deadline
        late = await in_transaction(self._sessions, lambda session: overdue(session, deadline, OVERDUE_AT_ONCE))
        given = [await checker.expire(agent_id, deployment_id, deadline) for agent_id, deployment_id in late]
        return len(late) == OVERDUE_AT_ONCE and any(given)

    async def _let_go(self) -> None:
        """End what is being looked at: it is due again after one interval, here or elsewhere."""
        for look in self._looks:
            look.cancel()
        await asyncio.gather(*self._looks, return_exceptions=True)
