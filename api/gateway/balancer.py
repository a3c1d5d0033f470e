"""Chooses an instance for each call, and another one while it is certain that nothing was sent.

Power of two choices: of two instances drawn at random, the call goes to the one with fewer calls in flight. A process
counts its own calls only, and yet the processes do not all send their calls to the instance that looks best.
https://www.eecs.harvard.edu/~michaelm/postscripts/handbook2001.pdf
"""

import asyncio
import math
import random
from collections.abc import Callable, Container, Coroutine, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from prometheus_client import Counter

from api.gateway.circuit_breaker import BreakerOpen, CircuitBreakers, Permit, TooManyCalls
from api.gateway.upstream import AgentAnswer, AgentUnreachable, Call, ConnectTimeout, call_agent, connection_refused
from services.connections import CleanConnector
from services.errors import DestinationDenied, Unavailable
from services.routing.routes import Instance, Route
from services.settings import Settings

# While other instances are left, each may take a third of the time for connecting.
CONNECT_SHARE = 1 / 3
# An instance that has just become Ready counts as at most ten times as loaded as it is.
COLDEST = 0.1
_SHORTEST_SECONDS = 0.001

_NOT_SENT = (AgentUnreachable, ConnectTimeout, DestinationDenied)


class BalancedCall:
    """One call in flight at an instance of its route; use it as a context manager."""

    def __init__(self, balancer: "Balancer", route: Route, chosen: Route, permit: Permit) -> None:
        self._balancer, self._route, self._permit = balancer, route, permit
        self._tried = {chosen.instance_id}
        self.route = chosen
        """The route to the instance that has the call now."""

    def __enter__(self) -> Self:
        """The call; `Balancer.enter` has counted it already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the call."""
        self._permit.__exit__(kind, error, traceback)

    @property
    def failovers(self) -> int:
        """How many instances could not be reached before this one."""
        return len(self._tried) - 1

    async def answer(self, call_to: Callable[[Route], Call]) -> AgentAnswer:
        """The answer of the first instance that accepts the call, as `call_agent` returns and raises it.

        `call_to` makes the call for the address of an instance. Connecting takes at most the connect timeout in total.
        """
        seconds = self._balancer.connect_seconds
        if not self._route.instances:
            return await self._permit.watch(self._balancer.call(call_to(self.route), seconds))
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while True:
            last = not self._balancer.has_other(self._route, self._tried)
            left = max(deadline - clock(), _SHORTEST_SECONDS)
            share = left if last else min(left, seconds * CONNECT_SHARE)
            try:
                return await self._permit.watch(self._balancer.call(call_to(self.route), share, retry=last))
            except _NOT_SENT as exc:
                if last or clock() >= deadline:
                    raise
                self._move_on(exc)

    def _move_on(self, error: AgentUnreachable | ConnectTimeout | DestinationDenied) -> None:
        """Go to another instance; stay if meanwhile all others refuse calls."""
        found = self._balancer.other(self._route, self._tried)
        if found is None:
            return
        if connection_refused(error) or isinstance(error, DestinationDenied):
            self._permit.failed(final=True)
        self._permit.__exit__(None, None, None)
        self.route, self._permit = found
        self._tried.add(self.route.instance_id)
        self._balancer.failovers.labels(error.reason).inc()


class Balancer:
    """Sends the calls of one process to the instances of their routes."""

    def __init__(
        self, settings: Settings, breakers: CircuitBreakers, upstream: CleanConnector, failovers: Counter
    ) -> None:
        self._settings, self._breakers, self._upstream = settings, breakers, upstream
        self.connect_seconds = settings.connect_timeout.total_seconds()
        self.failovers = failovers

    def check(self, route: Route) -> None:
        """Raise `TooManyCalls` or `BreakerOpen` if `enter` would; nothing is counted."""
        if not route.instances:
            self._breakers.check(route)
        elif not self.has_other(route, frozenset()):
            raise self._refusal(route)

    def enter(self, route: Route, *, preferred: str | None = None) -> BalancedCall:
        """One call to the less loaded of two instances, or to the deployment if its pods do not name theirs.

        The `preferred` instance gets the call, however loaded it is, while it is Ready and its breaker is closed.
        Raises `BreakerOpen`, `TooManyCalls`: no instance takes the call, or the preferred one has too many.
        """
        if not route.instances:
            return BalancedCall(self, route, route, self._breakers.enter(route))
        found = self._preferred(route, preferred) or self.other(route, frozenset())
        if found is None:
            raise self._refusal(route)
        return BalancedCall(self, route, *found)

    def has_other(self, route: Route, tried: Container[str | None]) -> bool:
        """Whether an instance that is not in `tried` would take a call now."""
        return any(each.instance_id not in tried and self._load(route, each) is not None for each in route.instances)

    def other(self, route: Route, tried: Container[str | None]) -> tuple[Route, Permit] | None:
        """The route to an instance that is not in `tried`, and the permit for the call; None if none takes it."""
        left = [each for each in route.instances if each.instance_id not in tried] if tried else route.instances
        # Of two that both refuse calls, nothing follows for the others.
        found = self._less_loaded(route, _two_of(left)) or self._less_loaded(route, random.sample(left, len(left)))
        return None if found is None else self._enter(route, found)

    def call(self, call: Call, connect_seconds: float, *, retry: bool = True) -> Coroutine[Any, Any, AgentAnswer]:
        """The answer to the call, as `call_agent` returns and raises it."""
        return call_agent(self._upstream, call, self._settings, connect_seconds, retry=retry)

    def _enter(self, route: Route, instance: Instance) -> tuple[Route, Permit]:
        chosen = route.at(instance)
        return chosen, self._breakers.enter(chosen)

    def _preferred(self, route: Route, preferred: str | None) -> tuple[Route, Permit] | None:
        for each in route.instances if preferred is not None else ():
            if each.instance_id == preferred:
                with suppress(BreakerOpen):
                    return self._enter(route, each)
        return None

    def _less_loaded(self, route: Route, instances: Iterable[Instance]) -> Instance | None:
        """The first of those with the smallest load; None if none takes a call now."""
        found: Instance | None = None
        smallest = math.inf
        for each in instances:
            load = self._load(route, each)
            if load is not None and load < smallest:
                found, smallest = each, load
        return found

    def _load(self, route: Route, instance: Instance) -> float | None:
        """The calls in flight there with one more, weighted for an instance that warms up; None if it takes none."""
        try:
            calls = 1 + self._breakers.check(route, instance)
        except (BreakerOpen, TooManyCalls):
            return None
        warm_up, ready_for = self._settings.instance_warm_up, route.ready_for(instance)
        return calls if ready_for >= warm_up else calls / max(ready_for / warm_up, COLDEST)

    def _refusal(self, route: Route) -> Unavailable:
        """The error of the instance that takes calls again first."""
        errors: list[Unavailable] = []
        for each in route.instances:
            try:
                self._breakers.check(route, each)
            except (BreakerOpen, TooManyCalls) as exc:
                errors.append(exc)
        return min(errors, key=lambda error: error.retry_after_seconds or 0)


def _two_of(instances: Sequence[Instance]) -> Sequence[Instance]:
    """Two of them at random, in random order; all if there are fewer."""
    count = len(instances)
    if count < 2:  # noqa: PLR2004 - two
        return instances
    first = int(random.random() * count)  # noqa: S311 - a share of the load, not a secret
    second = first + 1 + int(random.random() * (count - 1))  # noqa: S311
    return instances[first], instances[second % count]
