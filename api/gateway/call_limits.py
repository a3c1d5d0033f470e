"""Limits of calls per key and per agent: calls per second, and calls under way. Each process has its own counts."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import ceil
from time import monotonic

from services.domain.identity import NO_LIMITS, Identity, Limits
from services.errors import TooManyCalls
from services.routing.routes import Route

# Of how many keys and agents one process remembers the counts.
MOST_COUNTS = 10_000
# Calls that end free a place. Nobody knows when, so a caller is asked to wait this long.
BUSY_SECONDS = 1

_UNLIMITED = nullcontext()


@dataclass(slots=True)
class _Count:
    """The calls of one key or agent. `allowance` is how many may begin now; it grows to what a second allows."""

    allowance: float
    at: float
    under_way: int = 0


class CallLimits:
    """The counts of one process."""

    def __init__(self) -> None:
        self._counts: dict[object, _Count] = {}

    def call(self, identity: Identity, route: Route) -> AbstractContextManager[None]:
        """Count a call while inside. Entering raises `TooManyCalls`, and counts nothing then."""
        if identity.limits is NO_LIMITS and route.limits is NO_LIMITS:
            return _UNLIMITED
        return self._counted(identity, route)

    @contextmanager
    def _counted(self, identity: Identity, route: Route) -> Generator[None, None, None]:
        limited = [
            (each, limits, who)
            for each, limits, who in (
                (identity.key_id or identity.actor, identity.limits, f"{identity.actor} may have"),
                (route.agent_id, route.limits, "this agent may have"),
            )
            if limits is not NO_LIMITS
        ]
        now = monotonic()
        counts = [(self._refilled(each, limits, now), limits, who) for each, limits, who in limited]
        for count, limits, who in counts:
            _check(count, limits, who)
        for count, _, _ in counts:
            count.allowance -= 1
            count.under_way += 1
        try:
            yield
        finally:
            for count, _, _ in counts:
                count.under_way -= 1

    def _refilled(self, whose: object, limits: Limits, now: float) -> _Count:
        burst = max(1.0, limits.calls_per_second or 1.0)
        count = self._counts.pop(whose, None) or _Count(burst, now)
        self._counts[whose] = count
        count.allowance = min(burst, count.allowance + (now - count.at) * (limits.calls_per_second or 0.0))
        count.at = now
        if len(self._counts) > MOST_COUNTS:
            idle = next((each for each, other in self._counts.items() if not other.under_way), None)
            self._counts.pop(idle, None)
        return count


def _check(count: _Count, limits: Limits, who: str) -> None:
    if limits.calls_in_flight is not None and count.under_way >= limits.calls_in_flight:
        raise TooManyCalls(f"{who} {limits.calls_in_flight} calls under way.", retry_after_seconds=BUSY_SECONDS)
    if limits.calls_per_second is not None and count.allowance < 1:
        wait = ceil((1 - count.allowance) / limits.calls_per_second)
        raise TooManyCalls(f"{who} {limits.calls_per_second:g} calls per second.", retry_after_seconds=wait)
