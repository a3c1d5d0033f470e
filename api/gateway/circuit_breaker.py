"""Isolation between agents: per process, each deployment has a circuit breaker and a limit on calls in flight."""

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
from services.routing.routes import Route
from services.settings import Settings

# Deployments without calls in flight are remembered only after failures; each takes a few hundred bytes.
REMEMBERED = 10_000

log = structlog.get_logger(__name__)

T = TypeVar("T")
Key = tuple[UUID, str | None]


class BreakerOpen(Unavailable):
    """Several calls in a row could not reach the agent: it gets no calls for a short time, then one call as a test."""

    reason = "breaker-open"


class TooManyCalls(Unavailable):
    """Too many calls to this deployment are in flight: try again when some have ended."""

    reason = "too-many-calls"
    retry_after_seconds = 1


@dataclass(slots=True)
class CircuitBreaker:
    """The state of one deployment."""

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

    def failed(self) -> None:
        """Count a failure: the agent could not be reached, or did not start to answer in time."""
        if self._probe or self._began >= self._breaker.known_since:
            self._breakers.count_failure(self._breaker)


class CircuitBreakers:
    """The breakers of all deployments that this process is calling, or whose last calls failed."""

    def __init__(self, settings: Settings) -> None:
        self._failures = settings.breaker_failures
        self._pause = settings.breaker_pause.total_seconds()
        self._max_in_flight = settings.calls_per_deployment
        self._breakers: dict[Key, CircuitBreaker] = {}

    @staticmethod
    def now() -> float:
        """The clock of all breakers, in seconds."""
        return asyncio.get_running_loop().time()

    def check(self, route: Route) -> None:
        """Raise `TooManyCalls` or `BreakerOpen` if `enter` would; nothing is counted."""
        breaker = self._breakers.get((route.agent_id, route.deployment_id))
        if breaker is None or breaker.registered != _registered(route):
            return
        if breaker.in_flight >= self._max_in_flight:
            raise TooManyCalls
        if breaker.retry_at is not None:
            self._check_pause(breaker)

    def enter(self, route: Route) -> Permit:
        """A permit for one call to the deployment. Raises `TooManyCalls`, `BreakerOpen`."""
        key = (route.agent_id, route.deployment_id)
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
        """End one call; forget the deployment if that was its last call in flight and it has no failures."""
        breaker.in_flight -= 1
        if not breaker.in_flight and not breaker.failures and breaker.retry_at is None:
            self._breakers.pop(breaker.key, None)

    def count_failure(self, breaker: CircuitBreaker) -> None:
        """Count one more failure in a row; enough of them open the breaker, or keep it open."""
        breaker.failures += 1
        if breaker.failures < self._failures:
            return
        if breaker.retry_at is None:
            log.warning("An agent cannot be reached.", action="breaker.opened", **_names(breaker))
        breaker.known_since = self.now()
        breaker.retry_at = breaker.known_since + self._pause

    @property
    def in_flight(self) -> int:
        """Calls in flight now, over all deployments."""
        return sum(each.in_flight for each in self._breakers.values())

    @property
    def open(self) -> int:
        """Deployments whose breaker is open, including those that the next call tests."""
        return sum(each.retry_at is not None for each in self._breakers.values())

    def __len__(self) -> int:
        """How many deployments are remembered."""
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


def _registered(route: Route) -> tuple[str, datetime | None]:
    return route.acp_url, route.registered_at


def _names(breaker: CircuitBreaker) -> dict[str, str | None]:
    agent_id, deployment_id = breaker.key
    return {"agent_id": str(agent_id), "deployment_id": deployment_id}
