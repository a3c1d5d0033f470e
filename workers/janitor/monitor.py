"""What the outcomes of a janitor's probes say about the janitor itself.

If most of what it probes fails at the same time, the janitor or its network is the likely cause: it is in panic. The
results of its failed probes then count for nothing, and it goes on probing.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from urllib.parse import urlsplit
from uuid import UUID

import structlog

from services.domain.health_policy import ProbeOutcome, ProbeTarget
from services.health.janitors import JanitorReport
from services.settings import Settings
from workers.metrics import WorkerMetrics

# While probes cannot be made, the log says so this often.
UNKNOWN_LOGGED_EVERY_SECONDS = 60.0

# Deployment id and instance id.
PodKey = tuple[str, str]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Last:
    """The last probe of a deployment."""

    at: float
    agent_id: UUID
    address: str
    outcome: ProbeOutcome


class ProbeMonitor:
    """Counts the outcomes of one janitor's probes, and decides when it is in panic.

    Only deployments that are Ready count: those that have been Failed for long always fail.
    """

    def __init__(self, settings: Settings, metrics: WorkerMetrics, *, clock: Callable[[], float] = monotonic) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._last: dict[PodKey, _Last] = {}  # the oldest first
        self._failing: set[PodKey] = set()
        self._unknown: set[PodKey] = set()
        self._unknown_logged_at: float | None = None
        self.panic_since: datetime | None = None
        """When the present panic began."""
        self.panic_changed = asyncio.Event()
        """Set when a panic begins or ends."""

    def record(self, target: ProbeTarget, outcome: ProbeOutcome) -> bool:
        """Count this outcome; returns whether it may change the state of its deployment."""
        self._metrics.probes.labels(outcome.kind).inc()
        pod = (target.id, target.instance_id)
        self._forget(pod)
        if target.status == "Ready" or outcome.kind == "unknown":
            last = _Last(self._clock(), target.agent_id, urlsplit(target.url).netloc, outcome)
            self._last[pod] = last
            if outcome.kind == "failed":
                self._failing.add(pod)
            elif outcome.kind == "unknown":
                self._unknown.add(pod)
                self._log_unknown(target, outcome)
        self.refresh()
        return outcome.kind == "answered" or (outcome.kind == "failed" and self.panic_since is None)

    def refresh(self) -> None:
        """Forget the probes before the window, and begin or end a panic."""
        oldest = self._clock() - max(self._settings.panic_window, self._settings.probe_interval).total_seconds()
        while self._last:
            pod, last = next(iter(self._last.items()))
            if last.at >= oldest:
                break
            self._forget(pod)
        if self.panic_since is None and self._too_many_fail():
            self.panic_since = datetime.now(UTC)
            self.panic_changed.set()
            self._metrics.janitor_panic.set(1)
            log.error(
                "Most probes of this janitor fail: it sets no deployment Failed.",
                action="janitor.panic",
                failing=len(self._failing),
                probed=self._probed,
                why=self._last[next(iter(self._failing))].outcome.reason,
            )
        elif self.panic_since is not None and not self._too_many_fail():
            seconds = round((datetime.now(UTC) - self.panic_since).total_seconds(), 1)
            self.panic_since = None
            self.panic_changed.set()
            self._metrics.janitor_panic.set(0)
            log.warning(
                "The probes of this janitor are answered again: it gives verdicts.",
                action="janitor.panic_over",
                failing=len(self._failing),
                probed=self._probed,
                panic_seconds=seconds,
            )

    def report(self, janitor_id: UUID, name: str) -> JanitorReport:
        """What other processes may know."""
        self.refresh()
        unknown = next((self._last[each].outcome.reason for each in self._unknown), None)
        return JanitorReport(
            id=janitor_id,
            name=name,
            panic_since=self.panic_since,
            probed=self._probed,
            failing=len(self._failing),
            unknown=len(self._unknown),
            unknown_reason=unknown,
        )

    @property
    def _probed(self) -> int:
        return len(self._last) - len(self._unknown)

    def _too_many_fail(self) -> bool:
        """Whether more than the set share fails, of enough agents at enough addresses."""
        if len(self._failing) <= self._probed * self._settings.panic_share:
            return False
        failing = [self._last[each] for each in self._failing]
        distinct = min(len({each.agent_id for each in failing}), len({each.address for each in failing}))
        return distinct >= self._settings.panic_agents

    def _forget(self, pod: PodKey) -> None:
        self._last.pop(pod, None)
        self._failing.discard(pod)
        self._unknown.discard(pod)

    def _log_unknown(self, target: ProbeTarget, outcome: ProbeOutcome) -> None:
        now = self._clock()
        if self._unknown_logged_at is not None and now < self._unknown_logged_at + UNKNOWN_LOGGED_EVERY_SECONDS:
            return
        self._unknown_logged_at = now
        log.warning(
            "This janitor cannot make some probes; they count neither as failed nor as answered.",
            action="janitor.probe_unknown",
            deployment=target.id,
            why=outcome.reason,
            unknown=len(self._unknown),
        )
