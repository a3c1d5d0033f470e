"""Metrics with the label `agent`, for a bounded number of agents.

The first agents that a process sees, up to the setting, have series of their own; all others share `_other`, which is
the name of no agent. Series of deleted agents are removed, and their place is free for others.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.fields import AGENT_NAME_PATTERN
from services.domain.announcement import Departed, Registered, Shadowed
from services.domain.state import AgentSnapshot, LedgerRow

OTHER = "_other"
# An agent answers within milliseconds or within minutes: few buckets, since there are as many series for each agent.
BUCKETS_SECONDS = (0.01, 0.1, 1, 10, 60)
AGENT_ERROR = "agent-error"
"""The reason of an answer with a status of 500 or more."""
# The agent of an announcement with another outcome may not exist.
_APPLIED = (Registered, Shadowed, Departed)
# How often deleted agents are looked for, at most.
CHECK_SECONDS = 30.0

_LIVING = text("SELECT name FROM agents WHERE name = ANY(:names) AND deleted_at IS NULL")

M = TypeVar("M", Counter, Gauge, Histogram)


class DecidedMessage(Protocol):
    """What was decided about one announcement."""

    @property
    def outcome(self) -> object:
        """An object of the outcome's class."""

    @property
    def state(self) -> AgentSnapshot | None:
        """The agent after it; None if the announcement could not be read."""


class LabelledAgents:
    """The agents of one process that have a label value of their own, and the metrics with that label."""

    def __init__(self, registry: CollectorRegistry, most: int) -> None:
        """With `most` at 0 there are no metrics of agents."""
        self.most = most
        self._labels: set[str] = set()
        self._metrics: list[Counter | Gauge | Histogram] = []
        self._when_forgotten: list[Callable[[str], object]] = []
        self._checked_at = 0.0
        if most:
            registry.register(self)

    def add(self, metric: M) -> M:
        """Export this metric, whose first label is `agent`; returns it."""
        self._metrics.append(metric)
        return metric

    def when_forgotten(self, forget: Callable[[str], object]) -> None:
        """Call `forget` with the name of each agent whose series are removed."""
        self._when_forgotten.append(forget)

    def label(self, name: str, *, is_there: bool = True) -> str:
        """The label value of an agent; with `is_there` at False, a new one is not given to it."""
        if name not in self._labels:
            if not is_there or len(self._labels) >= self.most or not re.fullmatch(AGENT_NAME_PATTERN, name):
                return OTHER
            self._labels.add(name)
        return name

    def collect(self) -> Iterable[Metric]:
        """The metrics, without the times at which their series were created: those would be as many series again."""
        for metric in self._metrics:
            for family in metric.collect():
                family.samples = [each for each in family.samples if not each.name.endswith("_created")]
                yield family

    def forget(self, names: Iterable[str]) -> None:
        """Remove the series of these agents."""
        for name in self._labels.intersection(names):
            self._labels.discard(name)
            for metric in self._metrics:
                metric.remove_by_labels({"agent": name})
            for forget in self._when_forgotten:
                forget(name)

    def names_to_check(self) -> list[str]:
        """The agents of which to find out whether they were deleted; empty if that was done recently."""
        if not self._labels or monotonic() < self._checked_at + CHECK_SECONDS:
            return []
        self._checked_at = monotonic()
        return sorted(self._labels)


async def forget_deleted(session: AsyncSession, agents: LabelledAgents) -> None:
    """Remove the series of agents that were deleted, unless that was done recently."""
    if names := agents.names_to_check():
        living = set((await session.scalars(_LIVING, {"names": names})).all())
        agents.forget(set(names) - living)


@dataclass(slots=True)
class CallsOfAgent:
    """The series of the calls of one agent, or of all others, looked up once."""

    calls: Counter
    in_flight: Gauge
    first_byte: Histogram
    count_failure: Callable[[str], None]

    def ended(self, failure: str | None, first_byte_seconds: float | None) -> None:
        """Count a call that has ended; `failure` is why it failed, None if it did not."""
        self.calls.inc()
        if first_byte_seconds is not None:
            self.first_byte.observe(first_byte_seconds)
        if failure is not None:
            self.count_failure(failure)


class AgentCalls:
    """Calls of agents: how many, how long, and why they failed."""

    def __init__(self, agents: LabelledAgents) -> None:
        self._agents = agents
        self._by_label: dict[str, CallsOfAgent] = {}
        self._calls = agents.add(
            Counter("podium_agent_calls", "RPC calls of an agent that ended.", ["agent"], registry=None)
        )
        self._failures = agents.add(
            Counter("podium_agent_failures", "RPC calls that failed, by reason.", ["agent", "reason"], registry=None)
        )
        self._first_byte = agents.add(
            Histogram(
                "podium_agent_first_byte_seconds",
                "Time from a call to the first byte of the agent's answer.",
                ["agent"],
                buckets=BUCKETS_SECONDS,
                registry=None,
            )
        )
        self._in_flight = agents.add(
            Gauge("podium_agent_calls_under_way", "RPC calls of an agent in flight.", ["agent"], registry=None)
        )
        agents.when_forgotten(lambda name: self._by_label.pop(name, None))

    def of(self, name: str) -> CallsOfAgent | None:
        """The series of this agent's calls; None if there are no metrics of agents."""
        return self._by_label.get(name) or self._find(name)

    def _find(self, name: str) -> CallsOfAgent | None:
        if not self._agents.most:
            return None
        label = self._agents.label(name)
        found = self._by_label.get(label)
        if found is None:
            found = self._by_label[label] = CallsOfAgent(
                self._calls.labels(label),
                self._in_flight.labels(label),
                self._first_byte.labels(label),
                partial(self._count_failure, label),
            )
        return found

    def _count_failure(self, label: str, reason: str) -> None:
        # Looked up anew, since the agent's series may have been removed while the call was in flight.
        self._failures.labels(self._agents.label(label, is_there=False), reason).inc()


class AgentChanges:
    """What is announced about agents, and changes of what serves them."""

    def __init__(self, agents: LabelledAgents) -> None:
        self._agents = agents
        self._registrations = agents.add(
            Counter(
                "podium_agent_registrations",
                "Registrations, by outcome.",
                ["agent", "outcome"],
                registry=None,
            )
        )
        self._promotions = agents.add(
            Counter(
                "podium_agent_promotions",
                "Changes of what serves, by cause.",
                ["agent", "cause"],
                registry=None,
            )
        )

    def registered(self, decided: Sequence[DecidedMessage | None]) -> None:
        """Count the committed outcomes of one transaction; None was not decided in it."""
        if not self._agents.most:
            return
        states = []
        for each in decided:
            if each is not None:
                is_there = isinstance(each.outcome, _APPLIED)
                label = OTHER if each.state is None else self._agents.label(each.state.agent.name, is_there=is_there)
                self._registrations.labels(label, type(each.outcome).__name__).inc()
                states.append(each.state)
        self.changed([state for state in states if state is not None])

    def changed(self, states: Collection[AgentSnapshot]) -> None:
        """Count the ledger rows of one transaction, of which several states can hold the same one."""
        if not self._agents.most:
            return
        rows: dict[tuple[object, int], tuple[str, LedgerRow]] = {}
        for state in states:
            rows |= {(row.agent_id, row.generation): (state.agent.name, row) for row in state.ledger}
        for name, row in rows.values():
            self._promotions.labels(self._agents.label(name), row.cause).inc()
