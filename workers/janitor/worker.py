"""The janitor: probes deployments, and sets those Failed that stay Pending past their deadline.

Any number of janitors can run, in any number of processes: one of them at a time claims each deployment.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

from services.health.prober import open_prober
from services.health.probes import claim, overdue
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from workers.janitor.health_checks import SINGLE_TRANSACTIONS, HealthChecker, ResultBatcher
from workers.metrics import WorkerMetrics
from workers.retry import Outage, ended, pause

# Besides the single transactions: one each for claims, for overdue deployments, for batches of probe results, and for
# the notification of the relay.
CONNECTIONS = SINGLE_TRANSACTIONS + 4
OVERDUE_PER_QUERY = 100
# With a smaller share of its probes free, the janitor waits: a claim of few deployments is not worth a transaction.
MIN_FREE_SHARE = 0.2
BUSY_SECONDS = 0.02
END_SECONDS = 1.0


class Janitor:
    """Probes due deployments and applies deadlines until it is stopped."""

    def __init__(self, settings: Settings, sessions: Sessions, metrics: WorkerMetrics | None = None) -> None:
        self._settings = settings
        self._sessions = sessions
        self._metrics = metrics or WorkerMetrics()
        self._probes: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; continues after the loss of the database.

        Probes that run when it stops are cancelled. Their deployments are due again after one interval.
        """
        async with open_prober(self._settings, concurrency=self._settings.probe_concurrency) as prober:
            batcher = ResultBatcher(self._sessions)
            checker = HealthChecker(self._sessions, prober, batcher)
            batching = asyncio.create_task(batcher.run(), name="janitor.result_batcher")
            try:
                await asyncio.gather(
                    self._repeat(stop, "probes", lambda: self._probe_due(stop, checker)),
                    self._repeat(stop, "deadlines", lambda: self._expire_overdue(checker)),
                )
            finally:
                await self._cancel_probes()
                await ended(batching, END_SECONDS)

    async def _repeat(self, stop: asyncio.Event, name: str, work: Callable[[], Awaitable[bool]]) -> None:
        """Call `work` until `stop` is set: again at once if it returned that there may be more, else after a pause."""
        outage = Outage(failure_action="janitor.disconnected", recovery_action="janitor.connected")
        self._metrics.watch(name, outage)
        while not stop.is_set():
            try:
                more = await work()
            except Exception as error:  # noqa: BLE001 - nothing was committed, so the same deployments stay due
                await pause(stop, outage.failed(error))
                continue
            outage.over()
            if not more:
                # Random, so that of several janitors none always polls right after another and finds nothing due.
                jitter = random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
                await pause(stop, self._settings.janitor_poll.total_seconds() * jitter)

    async def _probe_due(self, stop: asyncio.Event, checker: HealthChecker) -> bool:
        """Claim due deployments and start probing them; returns whether there may be more of them."""
        free = self._settings.probe_concurrency - len(self._probes)
        if free <= self._settings.probe_concurrency * MIN_FREE_SHARE:
            await pause(stop, BUSY_SECONDS)
            return True
        targets = await in_transaction(self._sessions, lambda session: claim(session, self._settings, free))
        for target in targets:
            probe = asyncio.create_task(checker.check(target), name=f"check {target.id}")
            self._probes.add(probe)
            probe.add_done_callback(self._probes.discard)
        return len(targets) == free

    async def _expire_overdue(self, checker: HealthChecker) -> bool:
        """Set deployments Failed that have been Pending for too long; returns whether there may be more of them."""
        deadline = self._settings.pending_deadline
        late = await in_transaction(self._sessions, lambda session: overdue(session, deadline, OVERDUE_PER_QUERY))
        expired = [await checker.expire(agent_id, deployment_id, deadline) for agent_id, deployment_id in late]
        return len(late) == OVERDUE_PER_QUERY and any(expired)

    async def _cancel_probes(self) -> None:
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
