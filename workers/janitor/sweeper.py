"""Retention: removes rows that are past their retention, in small transactions with pauses between them.

Any number of processes can run a sweeper. A database lock per task ensures that one of them at a time runs it; the
others skip the task.
"""

import asyncio
from collections import Counter, deque
from functools import partial
from time import monotonic

import structlog

from services.retention.tasks import RetentionTask, sweep
from services.retention.versions import START, Cursor, TaskStep
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from workers.metrics import WorkerMetrics
from workers.retry import Outage, pause

# A longer pass is split, so that the log shows its progress. The next pass continues at its cursors.
LONGEST_PASS_SECONDS = 60.0
# After each transaction the sweeper pauses for as long as the transaction took, but no longer than this. So
# other transactions usually have the database at least half of the time.
LONGEST_PAUSE_SECONDS = 2.0

log = structlog.get_logger(__name__)


class Sweeper:
    """Runs the retention tasks until it is stopped."""

    def __init__(self, settings: Settings, sessions: Sessions, metrics: WorkerMetrics | None = None) -> None:
        self._settings = settings
        self._sessions = sessions
        self._outage = Outage(failure_action="sweep.disconnected", recovery_action="sweep.connected")
        self._metrics = metrics or WorkerMetrics()
        self._metrics.watch("retention", self._outage)
        self._cursors: dict[RetentionTask, Cursor] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; continues after the loss of the database."""
        while not stop.is_set():
            delay = self._settings.sweep_interval.total_seconds()
            try:
                await self.sweep(stop)
                self._outage.over()
            except Exception as error:  # noqa: BLE001 - the next pass removes what this one has not
                delay = self._outage.failed(error)
            await pause(stop, delay)

    async def sweep(self, stop: asyncio.Event) -> Counter[RetentionTask]:
        """Run one pass: the tasks in turn, step by step, until no rows are left or the pass takes too long.

        Returns how many rows each task removed. After a task fails, the other tasks still run; then the last error is
        raised.
        """
        began = monotonic()
        removed: Counter[RetentionTask] = Counter()
        failure: Exception | None = None
        pending = deque(RetentionTask)
        while pending and not stop.is_set() and monotonic() - began < LONGEST_PASS_SECONDS:
            task, started = pending.popleft(), monotonic()
            try:
                step = await self._step(task)
            except Exception as error:  # noqa: BLE001 - raised below
                failure = error
            else:
                removed[task] += step.rows
                self._metrics.rows_removed.labels(task.name.lower()).inc(step.rows)
                if step.cursor is not None:
                    pending.append(task)
            await pause(stop, min(monotonic() - started, LONGEST_PAUSE_SECONDS))
        if removed.total():
            counts = {task.name.lower(): removed[task] for task in RetentionTask}
            log.info("Removed rows past their retention.", action="sweep.removed", more=bool(pending), **counts)
        if failure is not None:
            raise failure
        return removed

    async def _step(self, task: RetentionTask) -> TaskStep:
        """Run one transaction of a task. The next step, also of the next pass, continues at its cursor."""
        cursor = self._cursors.pop(task, START)
        work = partial(sweep, task=task, settings=self._settings, cursor=cursor)
        step = await in_transaction(self._sessions, work)
        if step.cursor is not None:
            self._cursors[task] = step.cursor
        return step
