"""The sweep: what is past its retention goes, in small transactions with pauses between them.

Any number of processes may do it side by side: each chore is one's at a time, and the others pass on.
"""

import asyncio
from collections import Counter, deque
from functools import partial
from time import monotonic

import structlog

from services.retention.tasks import RetentionTask, Swept, sweep
from services.retention.versions import START, Cursor
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from workers.outage import Outage
from workers.retry import pause

# A pass that has more to do than this goes on in the next one; in between it says what it has done.
LONGEST_PASS_SECONDS = 60.0
# After each transaction it rests for as long as that took: others have the database at least half of the time.
LONGEST_REST_SECONDS = 2.0

log = structlog.get_logger(__name__)


class Sweeper:
    """Removes what is old until told to stop."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions
        self._outage = Outage(action="sweep.disconnected", back="sweep.connected")
        self._cursors: dict[RetentionTask, Cursor] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; survives the loss of the database."""
        while not stop.is_set():
            rest = self._settings.sweep_interval.total_seconds()
            try:
                await self.sweep(stop)
                self._outage.over()
            except Exception as error:  # noqa: BLE001 - whatever it was, what is old is still there next time
                rest = self._outage.failed(error)
            await pause(stop, rest)

    async def sweep(self, stop: asyncio.Event) -> Counter[RetentionTask]:
        """One pass: each chore in turn, step by step, until nothing is left or it is time to say what was done.

        A chore that fails leaves the others their turn; the last error is raised at the end.
        """
        began = monotonic()
        removed: Counter[RetentionTask] = Counter()
        failure: Exception | None = None
        left = deque(RetentionTask)
        while left and not stop.is_set() and monotonic() - began < LONGEST_PASS_SECONDS:
            chore, started = left.popleft(), monotonic()
            try:
                swept = await self._step(chore)
            except Exception as error:  # noqa: BLE001 - raised below
                failure = error
            else:
                removed[chore] += swept.rows
                if swept.cursor is not None:
                    left.append(chore)
            await pause(stop, min(monotonic() - started, LONGEST_REST_SECONDS))
        if removed.total():
            counts = {chore.name.lower(): removed[chore] for chore in RetentionTask}
            log.info("Removed what was past its retention.", action="sweep.removed", more=bool(left), **counts)
        if failure is not None:
            raise failure
        return removed

    async def _step(self, chore: RetentionTask) -> Swept:
        """One transaction; what comes after it is looked at next time, also in the next pass."""
        cursor = self._cursors.pop(chore, START)
        work = partial(sweep, task=chore, settings=self._settings, cursor=cursor)
        swept = await in_transaction(self._sessions, work)
        if swept.cursor is not None:
            self._cursors[chore] = swept.cursor
        return swept
