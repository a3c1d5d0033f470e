"""One agent's trouble is its own: a breaker, and a cap on calls under way, for each deployment in each process."""

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

# Only those that have failed are remembered while nobody calls them; a few hundred bytes each.
REMEMBERED = 10_000

log = structlog.get_logger(__name__)

T = TypeVar("T")
Key = tuple[UUID, str | None]


class BreakerOpen(Unavailable):
    """The agent could not be reached several times in a row: it is left alone for a moment, then tried again."""

    reason = "breaker-open"


class TooManyCalls(Unavailable):
    """Too many calls of this deployment are under way: try again when some have ended."""

    reason = "too-many-calls"
    retry_after_seconds = 1


@dataclass(slots=True)
class CircuitBreaker:
    """What is known of one deployment."""

    key: Key
    announced: tuple[str, datetime | None]
    under_way: int = 0
    failures: int = 0
    known_since: float = 0.0
    """When the agent answered last, or was given up on: how calls from before that end says nothing new."""
    retry_at: float | None = None
    """When one call may try again; None while calls pass."""
    probing: bool = False


class Permit:
    """One call under way; use it as a context manager. Say how it went once, by `answered` or by `failed`."""

    def __init__(self, circuits: "CircuitBreakers", circuit: CircuitBreaker, *, probe: bool) -> None:
        self._circuits, self._circuit, self._probe = circuits, circuit, probe
        self._began = circuits.now()

    def __enter__(self) -> Self:
        """The call is counted."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """It is over; a probe that nobody waited for leaves the question open to the next call."""
        if self._probe:
            self._circuit.probing = False
        self._circuits.leave(self._circuit)

    async def watch(self, answering: Awaitable[T]) -> T:
        """The agent's answer, or why there is none; what it says about the agent is counted."""
        try:
            answer = await answering
        except ForwardingFailure as exc:
            if exc.says_agent_is_away:
                self.failed()
            raise
        self.answered()
        return answer

    def answered(self) -> None:
        """The agent has answered, whatever it said: calls pass again."""
        circuit = self._circuit
        if circuit.retry_at is not None:
            log.info("An agent answers again.", action="breaker.closed", **_names(circuit))
        circuit.failures, circuit.retry_at = 0, None
        circuit.known_since = self._circuits.now()

    def failed(self) -> None:
        """The agent could not be reached, or did not start to answer in time."""
        if self._probe or self._began >= self._circuit.known_since:
            self._circuits.count_failure(self._circuit)


class CircuitBreakers:
    """All deployments that this process calls, or has found broken."""

    def __init__(self, settings: Settings) -> None:
        self._failures = settings.breaker_failures
        self._pause = settings.breaker_pause.total_seconds()
        self._most_under_way = settings.calls_per_deployment
        self._circuits: dict[Key, CircuitBreaker] = {}

    @staticmethod
    def now() -> float:
        """The clock by which it is decided when to try again."""
        return asyncio.get_running_loop().time()

    def enter(self, route: Route) -> Permit:
        """A place among the calls of the deployment. Raises `TooManyCalls`, `BreakerOpen`."""
        key = (route.agent_id, route.deployment_id)
        announced = (route.acp_url, route.registered_at)
        circuit = self._circuits.get(key)
        if circuit is None:
            self._forget_one_too_many()
            circuit = self._circuits[key] = CircuitBreaker(key, announced)
        elif circuit.announced != announced:
            # Who announces itself anew has just come up, at another address or at the same one.
            circuit.announced, circuit.failures, circuit.retry_at = announced, 0, None
            circuit.known_since = self.now()
        if circuit.under_way >= self._most_under_way:
            raise TooManyCalls
        if circuit.retry_at is not None:
            self._check_pause(circuit)
        probe = circuit.probing = circuit.retry_at is not None
        circuit.under_way += 1
        return Permit(self, circuit, probe=probe)

    def leave(self, circuit: CircuitBreaker) -> None:
        """Forget a deployment that nobody calls and that nothing is wrong with."""
        circuit.under_way -= 1
        if not circuit.under_way and not circuit.failures and circuit.retry_at is None:
            self._circuits.pop(circuit.key, None)

    def count_failure(self, circuit: CircuitBreaker) -> None:
        """One more in a row; too many open the breaker, or keep it open."""
        circuit.failures += 1
        if circuit.failures < self._failures:
            return
        if circuit.retry_at is None:
            log.warning("An agent cannot be reached.", action="breaker.opened", **_names(circuit))
        circuit.known_since = self.now()
        circuit.retry_at = circuit.known_since + self._pause

    @property
    def under_way(self) -> int:
        """Calls that have their place now."""
        return sum(each.under_way for each in self._circuits.values())

    @property
    def open(self) -> int:
        """Deployments whose breaker is open, also those whom the next call tries again."""
        return sum(each.retry_at is not None for each in self._circuits.values())

    def __len__(self) -> int:
        """How many deployments are remembered."""
        return len(self._circuits)

    def _forget_one_too_many(self) -> None:
        if len(self._circuits) >= REMEMBERED:
            idle = next((each.key for each in self._circuits.values() if not each.under_way), None)
            if idle is not None:
                del self._circuits[idle]

    def _check_pause(self, circuit: CircuitBreaker) -> None:
        assert circuit.retry_at is not None
        left = circuit.retry_at - self.now()
        if left > 0 or circuit.probing:
            error = BreakerOpen()
            error.retry_after_seconds = max(1, math.ceil(left))
            raise error


def _names(circuit: CircuitBreaker) -> dict[str, str | None]:
    agent_id, deployment_id = circuit.key
    return {"agent_id": str(agent_id), "deployment_id": deployment_id}
