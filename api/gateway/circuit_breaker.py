"""Isolation between agents: per process, each deployment has a circuit breaker and a limit on calls in flight.

Where pods name their instance, each instance has its own.
"""

import asyncio
import math
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID

import structlog

from api.http.jsonrpc import ForwardingFailure
from services.errors import Unavailable
from services.routing.routes import Instance, Route
from services.settings import Settings

# Deployments and instances without calls in flight are remembered only after failures; each takes a few hundred bytes.
REMEMBERED = 10_000

log = structlog.get_logger(__name__)

T = TypeVar("T")
Key = tuple[UUID, str | None, str | None]


class BreakerOpen(Unavailable):
    """Several calls in a row could not reach the agent: it gets no calls for a short time, then one call as a test."""

    reason = "breaker-open"


class TooManyCalls(Unavailable):
    """Too many calls to this deployment are in flight: try again when some have ended."""

    reason = "too-many-calls"
    retry_after_seconds = 1


@dataclass(slots=True)
class CircuitBreaker:
    """The state of one deployment or instance."""

    key: Key
    registered: tuple[str, datetime | None]
    """Address and time of the last registration: a new one resets the breaker."""
    in_flight: int = 0
    failures: int = 0
    known_since: float = 0.0
    """When the agent last answered or the breaker last opened: failures of calls from before are not counted."""
    retry_at: float | None = None
    """When one call may test the agent; None while the breaker is closed."""
    probing: bool = False


class Permit:
    """One call in flight; use it as a context manager. Report the result once, with `answered` or `failed`."""

    def __init__(self, breakers: "CircuitBreakers", breaker: CircuitBreaker, *, probe: bool) -> None:
        self._breakers, self._breaker, self._probe = breakers, breaker, probe
        self._began = breakers.now()

    def __enter__(self) -> Self:
        """The permit; `CircuitBreakers.enter` has counted the call already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the call; after a test call without a result, the next call tests the agent."""
        if self._probe:
            self._breaker.probing = False
        self._breakers.leave(self._breaker)

    async def watch(self, answering: Awaitable[T]) -> T:
        """The result of `answering`, counted for the breaker. Raises what `answering` raises."""
        try:
            answer = await answering
        except ForwardingFailure as exc:
            if exc.counts_as_failure:
                self.failed()
            raise
        self.answered()
        return answer

    def answered(self) -> None:
        """Count an answer of any status: close the breaker."""
        breaker = self._breaker
        if breaker.retry_at is not None:
            log.info("An agent answers again.", action="breaker.closed", **_names(breaker))
        breaker.failures, breaker.retry_at = 0, None
        breaker.known_since = self._breakers.now()

    def failed(self, *, final: bool = False) -> None:
        """Count a failure: the agent could not be reached, or did not start to answer in time.

        A `final` one opens the breaker at once.
        """
        if self._probe or self._began >= self._breaker.known_since:
            self._breakers.count_failure(self._breaker, final=final)


class CircuitBreakers:
    """The breakers of all deployments and instances that this process is calling, or whose last calls failed."""

    def __init__(self, settings: Settings) -> None:
        self._failures = settings.breaker_failures
        self._pause = settings.breaker_pause.total_seconds()
        self._max_in_flight = settings.calls_per_deployment
        self._breakers: dict[Key, CircuitBreaker] = {}

    @staticmethod
    def now() -> float:
        """The clock of all breakers, in seconds."""
        return asyncio.get_running_loop().time()

    def check(self, route: Route, instance: Instance | None = None) -> int:
        """The calls in flight at the route's address, or at this instance of it; nothing is counted.

        Raises `TooManyCalls` or `BreakerOpen` if `enter` would.
        """
        at = instance or route
        breaker = self._breakers.get((route.agent_id, route.deployment_id, at.instance_id))
        if breaker is None:
            return 0
        if breaker.in_flight >= self._max_in_flight:
            raise TooManyCalls
        if breaker.retry_at is not None and breaker.registered == _registered(at):
            self._check_pause(breaker)
        return breaker.in_flight

    def enter(self, route: Route) -> Permit:
        """A permit for one call to the deployment or instance. Raises `TooManyCalls`, `BreakerOpen`."""
        key = (route.agent_id, route.deployment_id, route.instance_id)
        registered = _registered(route)
        breaker = self._breakers.get(key)
        if breaker is None:
            self._evict_if_full()
            breaker = self._breakers[key] = CircuitBreaker(key, registered)
        elif breaker.registered != registered:
            # The pod has registered again, so it has just started, at the same address or another one.
            breaker.registered, breaker.failures, breaker.retry_at = registered, 0, None
            breaker.known_since = self.now()
        if breaker.in_flight >= self._max_in_flight:
            raise TooManyCalls
        if breaker.retry_at is not None:
            self._check_pause(breaker)
        probe = breaker.probing = breaker.retry_at is not None
        breaker.in_flight += 1
        return Permit(self, breaker, probe=probe)

    def leave(self, breaker: CircuitBreaker) -> None:
        """End one call; forget the breaker if that was its last call in flight and it has no failures."""
        breaker.in_flight -= 1
        if not breaker.in_flight and not breaker.failures and breaker.retry_at is None:
            self._breakers.pop(breaker.key, None)

    def count_failure(self, breaker: CircuitBreaker, *, final: bool = False) -> None:
        """Count one more failure in a row; enough of them, or a `final` one, open the breaker or keep it open."""
        breaker.failures = max(breaker.failures + 1, self._failures if final else 0)
        if breaker.failures < self._failures:
            return
        if breaker.retry_at is None:
            log.warning("An agent cannot be reached.", action="breaker.opened", **_names(breaker))
        breaker.known_since = self.now()
        breaker.retry_at = breaker.known_since + self._pause

    @property
    def in_flight(self) -> int:
        """Calls in flight now, over all breakers."""
        return sum(each.in_flight for each in self._breakers.values())

    @property
    def open(self) -> int:
        """Breakers that are open, including those whose agent the next call tests."""
        return sum(each.retry_at is not None for each in self._breakers.values())

    def __len__(self) -> int:
        """How many breakers are remembered."""
        return len(self._breakers)

    def _evict_if_full(self) -> None:
        if len(self._breakers) >= REMEMBERED:
            idle = next((each.key for each in self._breakers.values() if not each.in_flight), None)
            if idle is not None:
                del self._breakers[idle]

    def _check_pause(self, breaker: CircuitBreaker) -> None:
        assert breaker.retry_at is not None
        left = breaker.retry_at - self.now()
        if left > 0 or breaker.probing:
            error = BreakerOpen()
            error.retry_after_seconds = max(1, math.ceil(left))
            raise error


def _registered(at: Route | Instance) -> tuple[str, datetime | None]:
    return at.acp_url, at.registered_at


def _names(breaker: CircuitBreaker) -> dict[str, str | None]:
    agent_id, deployment_id, instance_id = breaker.key
    names = {"agent_id": str(agent_id), "deployment_id": deployment_id}
    return {**names, "instance_id": instance_id} if instance_id else names
