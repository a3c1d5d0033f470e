"""The janitor: probes deployments, and sets those Failed that stay Pending past their deadline.

Any number of janitors can run, in any number of processes: one of them at a time claims each deployment.
"""

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import ceil
from uuid import uuid4

import structlog

from services.domain.health_policy import ProbeTarget
from services.health.janitors import REPORT_EVERY, report_janitor, retire_janitor
from services.health.prober import open_prober
from services.health.probes import abandoned, claim, overdue
from services.routing.conversations import ConversationTerms
from services.routing.draining import finish_draining
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from workers.janitor.health_checks import SINGLE_TRANSACTIONS, HealthChecker, ResultBatcher
from workers.janitor.monitor import ProbeMonitor
from workers.metrics import WorkerMetrics
from workers.retry import Outage, at_most, ended, pause

# Besides the single transactions: one each for claims, for overdue deployments, for batches of probe results, and for
# the notification of the relay. The report takes turns with them.
CONNECTIONS = SINGLE_TRANSACTIONS + 4
OVERDUE_PER_QUERY = 100
# Previews use at most this share of the concurrent probes, so that previews that hang never delay production.
PREVIEW_SHARE = 0.5
# With a smaller share of its probes free, the janitor waits: a claim of few deployments is not worth a transaction.
MIN_FREE_SHARE = 0.2
BUSY_SECONDS = 0.02
END_SECONDS = 1.0
RETIRE_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Janitor:
    """Probes due deployments and applies deadlines until it is stopped."""

    def __init__(self, settings: Settings, sessions: Sessions, metrics: WorkerMetrics | None = None) -> None:
        self._settings = settings
        self._sessions = sessions
        self._metrics = metrics or WorkerMetrics()
        self._id = uuid4()
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._monitor = ProbeMonitor(settings, self._metrics)
        self._probes: set[asyncio.Task[None]] = set()
        self._preview_probes: set[asyncio.Task[None]] = set()
        self._max_previews = ceil(settings.probe_concurrency * PREVIEW_SHARE)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; continues after the loss of the database.

        Probes that run when it stops are cancelled. Their deployments are due again after one interval.
        """
        async with open_prober(self._settings, concurrency=self._settings.probe_concurrency) as prober:
            batcher = ResultBatcher(self._sessions)
            checker = HealthChecker(
                self._sessions, prober, batcher, self._monitor, janitor_id=self._id, metrics=self._metrics
            )
            batching = asyncio.create_task(batcher.run(), name="janitor.result_batcher")
            try:
                await asyncio.gather(
                    self._repeat(stop, "probes", lambda: self._probe_due(stop, checker)),
                    self._repeat(stop, "deadlines", lambda: self._expire_overdue(checker)),
                    self._report(stop),
                )
            finally:
                await self._cancel_probes()
                await ended(batching, END_SECONDS)
                await self._retire()

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
        """Claim due deployments, production first, and start probing them; returns whether there may be more."""
        free = self._settings.probe_concurrency - len(self._probes)
        if free <= self._settings.probe_concurrency * MIN_FREE_SHARE:
            await pause(stop, BUSY_SECONDS)
            return True
        previews = max(min(free, self._max_previews - len(self._preview_probes)), 0)
        if previews <= self._max_previews * MIN_FREE_SHARE:
            previews = 0
        targets = await in_transaction(
            self._sessions,
            lambda session: claim(session, self._settings, free, previews=previews, janitor_id=self._id),
        )
        for target in targets:
            self._start(target, checker)
        return len(targets) == free or (previews > 0 and sum(not each.is_production for each in targets) == previews)

    def _start(self, target: ProbeTarget, checker: HealthChecker) -> None:
        probe = asyncio.create_task(checker.check(target), name=f"check {target.id}")
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)
        if not target.is_production:
            self._preview_probes.add(probe)
            probe.add_done_callback(self._preview_probes.discard)

    async def _report(self, stop: asyncio.Event) -> None:
        """Report this janitor every few seconds, and at once when a panic begins or ends."""
        while not stop.is_set():
            self._monitor.panic_changed.clear()
            report = self._monitor.report(self._id, self._name)
            with suppress(Exception):  # the claims log that the database is unavailable
                await in_transaction(self._sessions, lambda session, report=report: report_janitor(session, report))  # type: ignore[misc]
            await pause(stop, REPORT_EVERY.total_seconds(), self._monitor.panic_changed)

    async def _retire(self) -> None:
        """Remove the report. If that fails, other processes wait a few seconds before they ignore this janitor."""
        await at_most(RETIRE_SECONDS, in_transaction(self._sessions, lambda session: retire_janitor(session, self._id)))

    async def _expire_overdue(self, checker: HealthChecker) -> bool:
        """Set Failed what has been Pending for too long, and finish rollbacks and draining that no probe leads to.

        Returns whether there may be more that is Pending.
        """
        deadline = self._settings.pending_deadline
        late = await in_transaction(self._sessions, lambda session: overdue(session, deadline, OVERDUE_PER_QUERY))
        expired = [await checker.expire(agent_id, deployment_id, deadline) for agent_id, deployment_id in late]
        for agent_id, deployment_id in await in_transaction(self._sessions, abandoned):
            await checker.roll_back_abandoned(agent_id, deployment_id, self._settings.probe_timeout)
        terms = ConversationTerms.of(self._settings)
        for drained in await in_transaction(self._sessions, lambda session: finish_draining(session, terms)):
            log.info(
                "No conversation is left with a deployment that stopped serving.",
                action="janitor.drained",
                agent=drained.agent_name,
                deployment=drained.deployment_id,
                why=drained.reason,
                moved=drained.moved,
            )
        return len(late) == OVERDUE_PER_QUERY and any(expired)

    async def _cancel_probes(self) -> None:
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
