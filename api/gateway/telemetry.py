"""Telemetry of each RPC: metrics for Prometheus, with no label value from a caller, one log line, and spans."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Literal

import structlog
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from api.gateway.circuit_breaker import CircuitBreakers
from api.gateway.headers import TRACEPARENT
from api.gateway.protocols import protocol_of
from api.gateway.spans import CallSpans
from services.agents.metrics import AGENT_ERROR, AgentCalls, CallsOfAgent, LabelledAgents
from services.calls.counts import CallCounts
from services.errors import CannotServe, PodiumError
from services.routing.routes import Route, RouteKey

Kind = Literal["agent", "name", "deployment"]

# A caller's request id can be as long as a header.
REQUEST_ID_LOGGED = 200

ANSWERED = "answered"
LEFT = "caller-left"
BROKEN = "broken"
DEFECT = "defect"

# HTTP statuses from here on say that the server has failed.
SERVER_ERRORS = 500

# Agents take seconds; the gateway adds far less than a millisecond.
_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
# The log line of each outcome; every other outcome is the reason of a refusal.
_LOG_LINES = {
    ANSWERED: {"event": "A call was forwarded.", "action": "rpc.forwarded"},
    LEFT: {"event": "A caller disconnected before the end of its answer.", "action": "rpc.left"},
    BROKEN: {"event": "An agent's answer ended early.", "action": "rpc.broken"},
    DEFECT: {"event": "A call failed because of an internal error.", "action": "rpc.failed"},
}
# The agent's answer says how the call ended; a caller that has left is nobody's failure.
_ANSWERS = frozenset({ANSWERED, LEFT})
_OF_THE_AGENT = frozenset({AGENT_ERROR, BROKEN})
_REFUSED = {"event": "A call was not forwarded.", "action": "rpc.refused"}

log = structlog.get_logger(__name__)


class RpcMetrics:
    """The RPC metrics of one process."""

    def __init__(self, registry: CollectorRegistry, agents: LabelledAgents) -> None:
        self._registry = registry
        self.agents = AgentCalls(agents)
        calls = Counter("podium_rpc_calls", "RPC calls ended, by how.", ["route", "outcome"], registry=registry)
        first_byte = Histogram(
            "podium_rpc_first_byte_seconds",
            "Time from a call to the first byte of its agent's answer.",
            ["route"],
            buckets=_BUCKETS_SECONDS,
            registry=registry,
        )
        self.bytes = Counter(
            "podium_rpc_bytes", "Bytes of bodies: to agents, and from them.", ["direction"], registry=registry
        )
        self.failovers = Counter(
            "podium_rpc_failovers",
            "RPC calls that moved on to another instance before anything was sent, by cause.",
            ["cause"],
            registry=registry,
        )
        self.mcp = Counter(
            "podium_rpc_mcp_calls",
            "RPC calls with an Mcp-Method header, by method; `other` if it is none of MCP's.",
            ["method"],
            registry=registry,
        )
        self.a2a = Counter(
            "podium_rpc_a2a_calls",
            "RPC calls with an A2A-Version header, by version.",
            ["version"],
            registry=registry,
        )
        self._in_flight = Gauge("podium_rpc_under_way", "RPC calls in flight.", registry=registry)
        self._open = Gauge(
            "podium_rpc_breakers_open", "Deployments and instances with an open circuit breaker.", registry=registry
        )
        # Each series is looked up once, so that calls do not pay for the lookup.
        self.calls_of = cache(calls.labels)
        self.first_byte_of = cache(first_byte.labels)
        self.to_agents, self.from_agents = self.bytes.labels("request"), self.bytes.labels("response")

    def watch(self, breakers: CircuitBreakers) -> None:
        """Have the gauges read these breakers at each scrape."""
        values: tuple[tuple[Gauge, Callable[[], float]], ...] = (
            (self._in_flight, lambda: breakers.in_flight),
            (self._open, lambda: breakers.open),
        )
        for gauge, value in values:
            gauge.set_function(value)


@dataclass(slots=True)
class CallRecord:
    """The record of one call, filled in while the call proceeds."""

    metrics: RpcMetrics
    counts: CallCounts
    kind: Kind
    method: str
    request_id: str
    trace_id: str
    span_id: str
    began: float
    actor: str
    route: Route | None = None
    failovers: int = 0
    status: int | None = None
    outcome: str = DEFECT
    detail: str | None = None
    first_byte_seconds: float | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    refusal: PodiumError | None = None
    agent: CallsOfAgent | None = None
    spans: CallSpans | None = None

    def routed(self, route: Route) -> None:
        """Record where the call goes, and count it as in flight."""
        self.route = route
        if self.agent is None and (agent := self.metrics.agents.of(route.agent_name)) is not None:
            self.agent = agent
            agent.in_flight.inc()

    def sent(self, headers: CIMultiDict[str]) -> None:
        """Record that the call is sent to its agent with these headers, which get the span that the agent continues."""
        protocol = protocol_of(headers)
        if protocol.mcp_method is not None:
            self.metrics.mcp.labels(protocol.mcp_method).inc()
        if protocol.a2a_version is not None:
            self.metrics.a2a.labels(protocol.a2a_version).inc()
        if self.spans is not None and self.route is not None:
            span = self.spans.begin_call(self.method, self.route, headers)
            self.span_id = f"{span.context.span_id:016x}"
            headers[TRACEPARENT] = span.traceparent

    def answer_began(self, status: int) -> None:
        """Record that the headers of the agent's answer have arrived."""
        self.status = status
        self.first_byte_seconds = perf_counter() - self.began
        self.metrics.first_byte_of(self.kind).observe(self.first_byte_seconds)

    def refused(self, error: PodiumError, status: int) -> None:
        """Record that the gateway answers itself, with this HTTP status."""
        self.refusal, self.outcome, self.status = error, error.reason, status
        if self.agent is None and isinstance(error, CannotServe) and error.agent_name is not None:
            agent = self.metrics.agents.of(error.agent_name)
            if agent is not None:
                agent.ended(self.failure, None)

    @property
    def failure(self) -> str | None:
        """Why the call has failed; None if it has not. A caller that leaves, or asks for too much, is no failure."""
        if self.refusal is not None:
            # The status that the caller gets can be 200, in the error style `jsonrpc`.
            return self.refusal.reason if self.refusal.status >= SERVER_ERRORS else None
        if self.outcome == ANSWERED:
            return AGENT_ERROR if self.status is not None and self.status >= SERVER_ERRORS else None
        return None if self.outcome == LEFT else self.outcome

    def end(self) -> None:
        """Count the call and write its log line."""
        metrics = self.metrics
        self._count()
        metrics.calls_of(self.kind, self.outcome).inc()
        metrics.to_agents.inc(self.request_bytes)
        metrics.from_agents.inc(self.response_bytes)
        if self.agent is not None:
            self.agent.in_flight.dec()
            self.agent.ended(self.failure, self.first_byte_seconds)
        if self.spans is not None:
            self.spans.end(self, None if self.outcome in _ANSWERS else self.outcome)
        level = logging.WARNING if self.outcome == BROKEN else logging.INFO
        if log.is_enabled_for(level):
            log.log(level, **_LOG_LINES.get(self.outcome, _REFUSED), **self._fields())

    def _count(self) -> None:
        """Count the call for its agent. If it was refused before its agent was known, it is in the metrics only."""
        if self.route is not None:
            agent_id, deployment_id = self.route.agent_id, self.route.deployment_id
        elif isinstance(self.refusal, CannotServe) and self.refusal.agent_id is not None:
            agent_id, deployment_id = self.refusal.agent_id, self.refusal.deployment_id
        else:
            return
        failure = self.failure
        self.counts.record(
            agent_id,
            deployment_id,
            agent_failed=failure in _OF_THE_AGENT,
            gateway_failed=failure is not None and failure not in _OF_THE_AGENT,
            answer_seconds=self.first_byte_seconds,
        )

    def _fields(self) -> dict[str, object]:
        route = self.route
        fields: dict[str, object | None] = {
            "agent_id": str(route.agent_id) if route else None,
            "deployment_id": route.deployment_id if route else None,
            "instance_id": (route.instance_id or None) if route else None,
            "generation": route.generation if route else None,
            "failovers": self.failovers or None,
            "method": self.method,
            "actor": self.actor,
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
        return {name: value for name, value in fields.items() if value is not None}


def kind_of(key: RouteKey) -> Kind:
    """Which of the three RPC routes the caller used."""
    if key.deployment_id is not None:
        return "deployment"
    return "agent" if key.name is None else "name"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
