"""The comparisons of the benchmarks and their targets."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

Figures = Mapping[str, float]

# A file or a pipe has no width of its own.
console = Console(width=None if sys.stdout.isatty() else 160)


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run measures. The short form has the same rows as the full one."""

    rounds: int = 3
    seconds: float = 0.8
    """Of a turn of one program."""
    warm_up_seconds: float = 0.5
    repeats: int = 1
    """Of what is measured without HTTP."""
    agents: int = 400
    """Of the backlog of announcements; the slow peer gets a tenth."""
    promotes_each: int = 40
    samples: int = 300
    """Of the way of an event, which is measured in milliseconds and not as a ratio."""


FULL = Length()
SHORT = Length(rounds=3, seconds=0.4, warm_up_seconds=0.3, repeats=3, agents=100, promotes_each=20, samples=0)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A rate of Podium compared with another one."""

    work: str
    ours: str
    peer: str
    theirs: str
    target: float | None = None
    """None if the ratio has no target: the other one is an upper limit, for example."""

    @property
    def name(self) -> str:
        """The names of both figures, which identify the ratio in stored results."""
        return f"{self.ours} / {self.theirs}"

    def measured(self, found: Figures) -> bool:
        """Whether both were measured."""
        return self.ours in found and self.theirs in found

    def of(self, found: Figures) -> float:
        """Podium's rate divided by the other one."""
        return found[self.ours] / found[self.theirs]


@dataclass(frozen=True, slots=True)
class Limit:
    """A duration with an upper limit as its target."""

    work: str
    ours: str
    target_ms: float


ORM = "Litestar handler + ORM session each"
# Kinds of work over HTTP: what it is, the peer, and the limit.
OVER_HTTP = {
    "registrations": ("registrations/s", ORM, "single-row commits/s"),
    "promotes": ("promotes/s, 64 agents", ORM, "single-row commits/s"),
    "promotes_of_one": ("promotes/s, one agent", ORM, "single-row commits/s"),
    "rollbacks": ("rollbacks/s, 64 agents", ORM, "single-row commits/s"),
    "reads": ("GET /agents/{id}", ORM, "single-row reads/s"),
    "lists": ("GET /agents?limit=50", ORM, "reads/s of 50 rows"),
    "forwards": ("RPC forwards/s", "Litestar handler + httpx, fixed route", "direct calls of the agent"),
}
CONNECTIONS = (1, 32, 128)
TARGETS = {"registrations_32": 6.0, "registrations_128": 6.0, "promotes_32": 5.0, "forwards_32": 7.0}
RELEASE = "release"


def _over_http(kind: str, connections: int) -> Sequence[Ratio]:
    (title, peer, limit), ours = OVER_HTTP[kind], f"{kind}_{connections}"
    work = f"{title}, HTTP, {connections} connection{'s' if connections > 1 else ''}"
    found = [Ratio(work, ours, peer, f"{ours}_peer", TARGETS.get(ours)), Ratio(work, ours, limit, f"{ours}_limit")]
    if kind == "forwards":
        found.append(Ratio(work, ours, "Podium at the log level warning", f"{ours}_warning"))
        found.append(Ratio(work, ours, "nginx, which looks nothing up", f"{ours}_nginx"))
    found.append(Ratio(work, ours, "the release", f"{ours}_{RELEASE}"))
    return found


_AMQP, _IN_PROCESS = "registrations/s, AMQP, one worker", "promotes/s, in process"
WITHOUT_HTTP = (
    Ratio(_AMQP, "registrations", "FastStream handler + ORM session each", "usual_way", 9.0),
    Ratio(_AMQP, "registrations", "raw aio-pika consume, no database", "raw_consume", 0.4),
    Ratio(_AMQP, "registrations", "the release", f"registrations_{RELEASE}"),
    Ratio(f"{_IN_PROCESS}, 64 at a time", "promotes", "single-row commits/s", "commits", 0.18),
    Ratio(f"{_IN_PROCESS}, under the lock", "promotes_locked", "single-row commits/s", "commits"),
)
RATIOS = (
    *WITHOUT_HTTP,
    *(each for kind in OVER_HTTP for connections in CONNECTIONS for each in _over_http(kind, connections)),
)
LIMITS = (
    Limit("added to a call, one connection, p50", "forward_added_p50_ms", 0.5),
    Limit("added to a call, one connection, p99", "forward_added_p99_ms", 2.0),
    Limit("from publish to event, idle, p50", "event_p50_ms", 15.0),
    Limit("from publish to event, idle, p99", "event_p99_ms", 50.0),
)
