"""What is kept of each RPC: numbers for Prometheus, no label of which is a stranger's word, and one line in the log."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from api.gateway.circuit_breaker import CircuitBreakers
from services.routing.routes import Route, RouteKey

Kind = Literal["agent", "name", "deployment"]

# A caller's own may be as long as a header.
REQUEST_ID_LOGGED = 200

ANSWERED = "answered"
LEFT = "caller-left"
BROKEN = "broken"
DEFECT = "defect"

# Agents think for seconds; what the gateway adds is far below a millisecond.
_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
# What is said of each outcome; all others are reasons of a refusal.
_ENDINGS = {
    ANSWERED: {"event": "A call was forwarded.", "action": "rpc.forwarded"},
    LEFT: {"event": "A caller left before its answer's end.", "action": "rpc.left"},
    BROKEN: {"event": "An agent's answer ended before its end.", "action": "rpc.broken"},
    DEFECT: {"event": "A call failed for a reason of our own.", "action": "rpc.failed"},
}
_REFUSED = {"event": "A call was not forwarded.", "action": "rpc.refused"}

log = structlog.get_logger(__name__)


class RpcMetrics:
    """The numbers of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.calls = Counter("podium_rpc_calls", "RPC calls ended, by how.", ["route", "outcome"], registry=registry)
        self.first_byte = Histogram(
            "podium_rpc_first_byte_seconds",
            "Time from a call to the first byte of its agent's answer.",
            ["route"],
            buckets=_BUCKETS_SECONDS,
            registry=registry,
        )
        self.bytes = Counter(
            "podium_rpc_bytes", "Bytes of bodies: to agents, and from them.", ["direction"], registry=registry
        )
        self._under_way = Gauge("podium_rpc_under_way", "RPC calls under way.", registry=registry)
        self._open = Gauge("podium_rpc_breakers_open", "Deployments left alone for a moment.", registry=registry)
        # Looked up once: a call should not pay for it.
        self.to_agents, self.from_agents = self.bytes.labels("request"), self.bytes.labels("response")

    def watch(self, circuits: CircuitBreakers) -> None:
        """Show what these know, whenever somebody looks."""
        shown: tuple[tuple[Gauge, Callable[[], float]], ...] = (
            (self._under_way, lambda: circuits.under_way),
            (self._open, lambda: circuits.open),
        )
        for gauge, value in shown:
            gauge.set_function(value)


@dataclass(slots=True)
class CallRecord:
    """One call, as far as it has come."""

    metrics: RpcMetrics
    kind: Kind
    method: str
    request_id: str
    trace_id: str
    span_id: str
    began: float
    route: Route | None = None
    status: int | None = None
    outcome: str = DEFECT
    detail: str | None = None
    first_byte_seconds: float | None = None
    request_bytes: int = 0
    response_bytes: int = 0

    def answer_began(self, status: int) -> None:
        """The agent's answer is here, up to its headers."""
        self.status = status
        self.first_byte_seconds = perf_counter() - self.began
        self.metrics.first_byte.labels(self.kind).observe(self.first_byte_seconds)

    def end(self) -> None:
        """Count it, and say so."""
        metrics = self.metrics
        metrics.calls.labels(self.kind, self.outcome).inc()
        metrics.to_agents.inc(self.request_bytes)
        metrics.from_agents.inc(self.response_bytes)
        level = logging.WARNING if self.outcome == BROKEN else logging.INFO
        if log.is_enabled_for(level):
            log.log(level, **_ENDINGS.get(self.outcome, _REFUSED), **self._facts())

    def _facts(self) -> dict[str, object]:
        route = self.route
        facts: dict[str, object | None] = {
            "agent_id": str(route.agent_id) if route else None,
            "deployment_id": route.deployment_id if route else None,
            "generation": route.generation if route else None,
            "method": self.method,
            "status": self.status,
            "outcome": self.outcome,
            "detail": self.detail,
            "ms": _milliseconds(perf_counter() - self.began),
            "first_byte_ms": _milliseconds(self.first_byte_seconds),
            "request_bytes": self.request_bytes,
            "response_bytes": self.response_bytes,
            "request_id": self.request_id[:REQUEST_ID_LOGGED],
            "trace_id": self.trace_id,
            "span_id": self.span_id,
        }
        return {name: value for name, value in facts.items() if value is not None}


def kind_of(wanted: RouteKey) -> Kind:
    """By what the caller named the agent."""
    if wanted.deployment_id is not None:
        return "deployment"
    return "agent" if wanted.name is None else "name"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
