"""Metrics and state of one worker process, as its monitoring listener reports them.

No label holds a value from a message, except the names of some agents: each value is a time series.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.agents.metrics import AgentChanges, LabelledAgents
from workers.retry import Outage

_BATCH_MESSAGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_BATCH_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# From the time that the pod gives to the commit: a wait in the queue can last for hours.
_AGE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21600)
_DELIVERY_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60)


class WorkerMetrics:
    """The metrics of one process, in a registry of its own, and the outages of its workers."""

    def __init__(self, agents: int = 0) -> None:
        """Of at most so many `agents` there are metrics of their own; 0: no metrics of agents."""
        self.registry = registry = CollectorRegistry()
        self.labelled = LabelledAgents(registry, agents)
        self.agents = AgentChanges(self.labelled)
        self.outages: dict[str, Outage] = {}
        self.registrations = Counter(
            "podium_registrations", "Registrations from the queue, by outcome.", ["outcome"], registry=registry
        )
        self.batch_messages = Histogram(
            "podium_registration_batch_messages", "Messages per batch.", buckets=_BATCH_MESSAGES, registry=registry
        )
        self.batch_seconds = Histogram(
            "podium_registration_batch_seconds",
            "Time from the start of a batch to its commit.",
            buckets=_BATCH_SECONDS,
            registry=registry,
        )
        self.registration_age = Histogram(
            "podium_registration_age_seconds",
            "Time from `registered_at` to the commit, of the oldest registration of each batch.",
            buckets=_AGE_SECONDS,
            registry=registry,
        )
        self.parked = Counter("podium_dead_letters_parked", "Dead letters parked by this process.", registry=registry)
        self.events_published = Counter(
            "podium_events_published", "Events that the broker confirmed to this process.", registry=registry
        )
        self.relay_active = Gauge(
            "podium_relay_active", "1 while this process holds the relay lock and publishes.", registry=registry
        )
        self.probes = Counter("podium_probes", "Probes of deployments, by result.", ["result"], registry=registry)
        self.janitor_panic = Gauge(
            "podium_janitor_panic", "1 while most probes fail and no deployment is set Failed.", registry=registry
        )
        self.verdicts = Counter(
            "podium_verdicts", "Deployments whose status a probe or a deadline changed.", ["status"], registry=registry
        )
        self.webhook_deliveries = Counter(
            "podium_webhook_deliveries", "Deliveries of webhooks, by outcome.", ["outcome"], registry=registry
        )
        self.webhook_seconds = Histogram(
            "podium_webhook_delivery_seconds",
            "Time from the start of a delivery to the head of its answer.",
            buckets=_DELIVERY_SECONDS,
            registry=registry,
        )
        self.rows_removed = Counter(
            "podium_retention_rows", "Rows removed or purged by retention, by task.", ["task"], registry=registry
        )

    def watch(self, worker: str, outage: Outage) -> None:
        """Report this worker as ready once it has worked, and while it has no outage."""
        self.outages[worker] = outage

    def batch_decided(self, outcomes: Mapping[str, int], seconds: float, oldest_seconds: float | None) -> None:
        """Record a committed batch: messages by outcome, how long it took, and the age of its oldest registration."""
        for outcome, messages in outcomes.items():
            self.registrations.labels(outcome).inc(messages)
        self.batch_messages.observe(sum(outcomes.values()))
        self.batch_seconds.observe(seconds)
        if oldest_seconds is not None:
            self.registration_age.observe(max(oldest_seconds, 0.0))
