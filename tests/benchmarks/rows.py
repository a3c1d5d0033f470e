"""The comparisons of the benchmarks and their targets."""

from collections.abc import Mapping
from dataclasses import dataclass

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A rate of Podium compared with a rate of a peer."""

    work: str
    ours: str
    peer: str
    theirs: str
    target: float | None
    """None if the peer is an upper limit and not a target."""

    def measured(self, found: Figures) -> bool:
        """Whether the peer was measured."""
        return self.theirs in found

    def of(self, found: Figures) -> float:
        """Podium's rate divided by the peer's rate."""
        return found[self.ours] / found[self.theirs]


@dataclass(frozen=True, slots=True)
class Limit:
    """A duration with an upper limit as its target."""

    work: str
    ours: str
    target_ms: float


RATIOS = (
    Ratio("registrations/s, one worker", "registrations", "FastStream handler + ORM session each", "usual_way", 25.0),
    Ratio("registrations/s, one worker", "registrations", "raw aio-pika consume, no database", "raw_consume", 0.6),
    Ratio("RPC forwards/s, one API process", "forwards", "Litestar handler + httpx", "httpx_forwards", 6.0),
    Ratio("RPC forwards/s, one API process", "forwards", "nginx, which looks nothing up", "nginx_forwards", None),
    Ratio("promotes/s, 64 sessions, 64 agents", "promotes", "single-row commits/s of the database", "commits", 0.25),
)
LIMITS = (
    Limit("added to a call, one connection, p50", "forward_added_p50_ms", 0.5),
    Limit("added to a call, one connection, p99", "forward_added_p99_ms", 2.0),
    Limit("from publish to event, idle, p50", "event_p50_ms", 15.0),
    Limit("from publish to event, idle, p99", "event_p99_ms", 50.0),
)
