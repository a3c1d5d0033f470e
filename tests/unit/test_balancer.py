from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import prometheus_client
import pytest

from api.gateway.balancer import BalancedCall, Balancer
from api.gateway.circuit_breaker import BreakerOpen, CircuitBreakers, TooManyCalls
from services.routing.routes import Instance, Route
from services.settings import Settings

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
WARM = timedelta(seconds=10)
PAUSE = timedelta(seconds=5)
MOST = 20


@pytest.fixture
def breakers(monkeypatch: pytest.MonkeyPatch) -> CircuitBreakers:
    """Breakers that open after three failures; their clock stands still."""
    monkeypatch.setattr(CircuitBreakers, "now", lambda _: 100.0)
    return CircuitBreakers(Settings(breaker_failures=3, breaker_pause=PAUSE, calls_per_deployment=MOST))


@pytest.fixture
def balancer(breakers: CircuitBreakers) -> Balancer:
    """A balancer that has no upstream: its calls are never answered."""
    failovers = prometheus_client.Counter("failovers", "For this test.", ["cause"], registry=None)
    return Balancer(Settings(instance_warm_up=WARM), breakers, None, failovers)  # type: ignore[arg-type]


@pytest.fixture
def calls() -> Iterator[ExitStack]:
    """Holds calls in flight until the end of the test."""
    with ExitStack() as stack:
        yield stack


def an_instance(name: str, *, ready_for: timedelta = timedelta(hours=1), **fields: Any) -> Instance:
    """A Ready instance."""
    known = {"acp_url": f"http://{name}", "rpc_path": "/api", "registered_at": NOW - ready_for, **fields}
    return Instance(name, ready_at=NOW - ready_for, **known)


def a_route(*instances: Instance | str) -> Route:
    """A route to a deployment with these instances."""
    found = tuple(an_instance(each) if isinstance(each, str) else each for each in instances)
    return Route(UUID(int=1), 1, "v1", "http://old", "/api", "http", NOW, instances=found, read_at=NOW)


def held(calls: ExitStack, balancer: Balancer, route: Route, count: int, **options: Any) -> Counter[str | None]:
    """Let this many more calls be in flight; returns how many each instance got."""
    return Counter(calls.enter_context(balancer.enter(route, **options)).route.instance_id for _ in range(count))


def instance_of(balancer: Balancer, route: Route, **options: Any) -> str | None:
    """The instance of a call that ends at once."""
    with balancer.enter(route, **options) as call:
        return call.route.instance_id


def fail(breakers: CircuitBreakers, route: Route, *names: str) -> None:
    """Open the breakers of these instances."""
    for each in route.instances:
        if each.instance_id in names:
            with breakers.enter(route.at(each)) as permit:
                permit.failed(final=True)


def test_a_deployment_without_instances_is_its_own_target(balancer: Balancer) -> None:
    """Its address is called, and no instance is named."""
    with balancer.enter(a_route()) as call:
        assert (call.route.rpc_url, call.route.instance_id) == ("http://old/api", None)


def test_the_address_is_the_instances(balancer: Balancer) -> None:
    """With its own path, and all else as in the deployment's route."""
    route = a_route(an_instance("a", rpc_path="/rpc"))
    with balancer.enter(route) as call:
        assert (call.route.rpc_url, call.route.instance_id) == ("http://a/rpc", "a")
        assert (call.route.deployment_id, call.route.generation) == ("v1", 1)


def test_calls_in_flight_are_even(balancer: Balancer, calls: ExitStack) -> None:
    """Of two drawn at random, the one with fewer calls in flight gets the next: no instance is far ahead."""
    found = held(calls, balancer, a_route("a", "b", "c", "d"), 40)
    assert len(found) == 4
    assert max(found.values()) - min(found.values()) <= 4


def test_equal_instances_get_equal_shares(balancer: Balancer) -> None:
    """G62: also of calls that come one after another, when none is in flight."""
    found = Counter(instance_of(balancer, a_route("a", "b", "c", "d")) for _ in range(10_000))
    assert all(abs(count / 10_000 - 0.25) < 0.03 for count in found.values()), found


@pytest.mark.parametrize("count", [2, 5])
def test_a_loaded_instance_gets_no_call_while_another_has_fewer(
    balancer: Balancer, calls: ExitStack, count: int
) -> None:
    """G62: calls that hang at one instance keep further calls away from it."""
    route = a_route(*"abcde"[:count])
    held(calls, balancer, route, 5, preferred="a")
    assert all(instance_of(balancer, route) != "a" for _ in range(100))


def test_a_fresh_instance_counts_as_more_loaded(balancer: Balancer, calls: ExitStack) -> None:
    """G63: half-way through its warm-up an instance has about half of its sibling's calls in flight, then as many."""
    found = held(calls, balancer, a_route("old", an_instance("new", ready_for=WARM / 2)), 18)
    assert found == {"old": 12, "new": 6}
    assert held(calls, balancer, a_route("old", an_instance("new", ready_for=WARM)), 12)["new"] == 9


def test_the_coldest_instance_gets_some_calls(balancer: Balancer, calls: ExitStack) -> None:
    """G63: one that has just become Ready takes part, so a flood does not depend on the others alone."""
    found = held(calls, balancer, a_route("old", an_instance("new", ready_for=timedelta(0))), 20)
    assert found == {"old": 19, "new": 1}


def test_without_a_warm_up_all_are_equal(breakers: CircuitBreakers, calls: ExitStack) -> None:
    """`PODIUM_INSTANCE_WARM_UP=0`."""
    balancer = Balancer(Settings(instance_warm_up=timedelta(0)), breakers, None, None)  # type: ignore[arg-type]
    found = held(calls, balancer, a_route("old", an_instance("new", ready_for=timedelta(0))), 20)
    assert found == {"old": 10, "new": 10}


def test_an_open_breaker_leaves_the_siblings(balancer: Balancer, breakers: CircuitBreakers) -> None:
    """G65: calls go to the others; those of another agent or deployment with the same instance ids are not affected."""
    route = a_route("a", "b", "c", "d", "e")
    fail(breakers, route, "a", "b", "c")
    assert {instance_of(balancer, route) for _ in range(100)} == {"d", "e"}
    assert breakers.open == 3
    fail(breakers, route, "d")
    assert {instance_of(balancer, route) for _ in range(20)} == {"e"}


def test_when_all_breakers_are_open_the_call_is_refused(balancer: Balancer, breakers: CircuitBreakers) -> None:
    """G65: with the shortest time after which one of them takes a call; the check before a large body agrees."""
    route = a_route("a", "b")
    fail(breakers, route, "a")
    balancer.check(route)
    fail(breakers, route, "b")
    for refuses in (balancer.check, balancer.enter):
        with pytest.raises(BreakerOpen) as error:
            refuses(route)
        assert error.value.retry_after_seconds == 5


def test_calls_in_flight_are_limited_per_instance(balancer: Balancer, calls: ExitStack) -> None:
    """G65: a full instance leaves calls to the others; when all are full the call is refused."""
    route = a_route("a", "b")
    held(calls, balancer, route, MOST, preferred="a")
    assert held(calls, balancer, route, MOST) == {"b": MOST}
    for refuses in (balancer.check, balancer.enter):
        with pytest.raises(TooManyCalls):
            refuses(route)


def test_a_full_instance_among_dead_ones_is_the_reason(
    balancer: Balancer, breakers: CircuitBreakers, calls: ExitStack
) -> None:
    """G65: its calls end before the breakers of the others close."""
    route = a_route("a", "b", "c")
    fail(breakers, route, "a", "c")
    held(calls, balancer, route, MOST)
    with pytest.raises(TooManyCalls):
        balancer.enter(route)


def test_a_new_announcement_closes_the_breaker_of_its_instance_only(
    balancer: Balancer, breakers: CircuitBreakers
) -> None:
    """G65: at the same address or another one."""
    fail(breakers, a_route("a", "b"), "a", "b")
    again = an_instance("a", registered_at=NOW)
    assert {instance_of(balancer, a_route(again, "b")) for _ in range(20)} == {"a"}


def test_the_preferred_instance_gets_the_call(balancer: Balancer, breakers: CircuitBreakers, calls: ExitStack) -> None:
    """However loaded it is; another one if it is not Ready any more or its breaker is open."""
    route = a_route("a", "b", "c")
    assert held(calls, balancer, route, 10, preferred="b") == {"b": 10}
    assert instance_of(balancer, route, preferred="gone") in {"a", "c"}
    fail(breakers, route, "b")
    assert {instance_of(balancer, route, preferred="b") for _ in range(50)} == {"a", "c"}


def test_a_full_preferred_instance_refuses_the_call(balancer: Balancer, calls: ExitStack) -> None:
    """It is busy, not gone: the call waits for it instead of moving to an instance that does not know it."""
    route = a_route("a", "b")
    held(calls, balancer, route, MOST, preferred="a")
    with pytest.raises(TooManyCalls):
        balancer.enter(route, preferred="a")


def test_a_call_ends_at_its_instance(balancer: Balancer, breakers: CircuitBreakers) -> None:
    """Its place is free again, and nothing is remembered of instances that work."""
    call: BalancedCall = balancer.enter(a_route("a", "b"))
    assert breakers.in_flight == 1
    with call:
        pass
    assert (breakers.in_flight, len(breakers)) == (0, 0)
