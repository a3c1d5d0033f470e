from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from api.gateway import circuit_breaker as module
from api.gateway.circuit_breaker import BreakerOpen, CircuitBreakers, Permit, TooManyCalls
from services.routing.routes import Route
from services.settings import Settings

FAILURES, PAUSE = 3, timedelta(seconds=5)


@dataclass
class Clock:
    """A clock that the test sets."""

    seconds: float = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all breakers of this test."""
    clock = Clock()
    monkeypatch.setattr(CircuitBreakers, "now", lambda _: clock.seconds)
    return clock


@pytest.fixture
def circuits(clock: Clock) -> CircuitBreakers:
    """A breaker that opens after three failures for five seconds, and ten calls under way at most."""
    del clock
    return CircuitBreakers(Settings(breaker_failures=FAILURES, breaker_pause=PAUSE, calls_per_deployment=10))


def a_route(deployment_id: str | None = "v1", **fields: Any) -> Route:
    """A route to a deployment."""
    known = {"acp_url": "http://a", "registered_at": datetime(2026, 1, 1, tzinfo=UTC), **fields}
    return Route(UUID(int=1), 1, deployment_id, known["acp_url"], "/api", "http", known["registered_at"])


def call(circuits: CircuitBreakers, route: Route, *, works: bool) -> None:
    """Run one call, which works or fails."""
    with circuits.enter(route) as permit:
        (permit.answered if works else permit.failed)()


def refused(circuits: CircuitBreakers, route: Route) -> int | None:
    """The retry-after of a refused call in seconds; None if the call passes, which then ends without a result."""
    try:
        with circuits.enter(route):
            return None
    except BreakerOpen as exc:
        return exc.retry_after_seconds


def broken(circuits: CircuitBreakers) -> Route:
    """The route of an agent whose breaker has just opened."""
    route = a_route()
    for _ in range(FAILURES):
        call(circuits, route, works=False)
    return route


def test_failures_in_a_row_open_it_for_a_while(circuits: CircuitBreakers, clock: Clock) -> None:
    """After the pause one call tests the agent, and its answer closes the breaker."""
    route = a_route()
    for _ in range(FAILURES):
        assert refused(circuits, route) is None
        call(circuits, route, works=False)
    assert refused(circuits, route) == 5
    assert circuits.open == 1
    clock.seconds += 3.5
    assert refused(circuits, route) == 2
    clock.seconds += 1.5
    call(circuits, route, works=True)
    assert circuits.open == 0
    assert [refused(circuits, route) for _ in range(3)] == [None] * 3


def test_an_answer_between_failures_resets_the_count(circuits: CircuitBreakers) -> None:
    """Only failures in a row open the breaker."""
    for _ in range(5):
        for works in (False, False, True):
            call(circuits, a_route(), works=works)
    assert circuits.open == 0


def test_only_one_call_tests_the_agent(circuits: CircuitBreakers, clock: Clock) -> None:
    """Other calls are refused until its result; after a failure they are refused for another pause."""
    route = broken(circuits)
    clock.seconds += 5
    with circuits.enter(route) as probe:
        assert refused(circuits, route) == 1
        probe.failed()
    assert refused(circuits, route) == 5


def test_after_a_test_call_without_a_result_the_next_call_tests(circuits: CircuitBreakers, clock: Clock) -> None:
    """Its caller disconnected, so nothing is known about the agent."""
    route = broken(circuits)
    clock.seconds += 5
    for _ in range(3):
        assert refused(circuits, route) is None
    assert circuits.open == 1


def test_failures_of_calls_from_before_an_answer_do_not_count(circuits: CircuitBreakers, clock: Clock) -> None:
    """An agent that was frozen answers again: calls that timed out meanwhile do not open the breaker."""
    route = a_route()
    old = [circuits.enter(route) for _ in range(FAILURES)]
    clock.seconds += 1
    call(circuits, route, works=True)
    end(old, works=False)
    assert circuits.open == 0


def test_late_failures_do_not_keep_it_open(circuits: CircuitBreakers, clock: Clock) -> None:
    """Failures of calls from before it opened do not extend the pause; a late answer closes the breaker."""
    route = a_route()
    old = [circuits.enter(route) for _ in range(3)]
    clock.seconds += 1
    broken(circuits)
    clock.seconds += 4
    end(old[:2], works=False)
    assert refused(circuits, route) == 1
    end(old[2:], works=True)
    assert refused(circuits, route) is None


def end(permits: list[Permit], *, works: bool) -> None:
    """End these calls, all with the same result."""
    for permit in permits:
        with permit:
            (permit.answered if works else permit.failed)()


@pytest.mark.parametrize(
    "fields", [{"acp_url": "http://b"}, {"registered_at": datetime(2026, 1, 2, tzinfo=UTC)}], ids=["moved", "restarted"]
)
def test_a_new_registration_closes_the_breaker(circuits: CircuitBreakers, fields: dict[str, Any]) -> None:
    """At another address, or at the same address again."""
    broken(circuits)
    assert refused(circuits, a_route(**fields)) is None
    assert circuits.open == 0


def test_other_deployments_are_not_affected(circuits: CircuitBreakers) -> None:
    """Neither another deployment nor the legacy address of the same agent."""
    broken(circuits)
    assert refused(circuits, a_route("v2")) is None
    assert refused(circuits, a_route(None)) is None


def test_calls_in_flight_are_limited(circuits: CircuitBreakers) -> None:
    """A call beyond the limit gets a retry-after; each call that ends makes room for another."""
    permits = [circuits.enter(a_route()) for _ in range(10)]
    with pytest.raises(TooManyCalls) as error:
        circuits.enter(a_route())
    assert error.value.retry_after_seconds == 1
    assert refused(circuits, a_route("v2")) is None
    assert circuits.in_flight == 10
    end(permits[:1], works=True)
    assert refused(circuits, a_route()) is None


def test_what_is_remembered_is_bounded(circuits: CircuitBreakers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working deployments are not remembered, failing ones up to a limit, those with calls in flight always."""
    for number in range(20):
        call(circuits, a_route(f"works-{number}"), works=True)
    assert len(circuits) == 0
    monkeypatch.setattr(module, "REMEMBERED", 4)
    calls = [circuits.enter(a_route(f"called-{number}")) for number in range(3)]
    for number in range(20):
        call(circuits, a_route(f"broken-{number}"), works=False)
    assert len(circuits) == 4
    end(calls, works=True)
    assert len(circuits) == 1
