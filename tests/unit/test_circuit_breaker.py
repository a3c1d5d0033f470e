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
    """A clock that a test sets."""

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
    """A way to a deployment."""
    known = {"acp_url": "http://a", "registered_at": datetime(2026, 1, 1, tzinfo=UTC), **fields}
    return Route(UUID(int=1), 1, deployment_id, known["acp_url"], "/api", "http", known["registered_at"])


def call(circuits: CircuitBreakers, route: Route, *, works: bool) -> None:
    """One call from its beginning to its end."""
    with circuits.enter(route) as permit:
        (permit.answered if works else permit.failed)()


def refused(circuits: CircuitBreakers, route: Route) -> int | None:
    """The seconds after which to come again; None if a call passes, which then ends without a verdict."""
    try:
        with circuits.enter(route):
            return None
    except BreakerOpen as exc:
        return exc.retry_after_seconds


def broken(circuits: CircuitBreakers) -> Route:
    """An agent that has just been given up on."""
    route = a_route()
    for _ in range(FAILURES):
        call(circuits, route, works=False)
    return route


def test_failures_in_a_row_open_it_for_a_while(circuits: CircuitBreakers, clock: Clock) -> None:
    """Then one call tries again, and its answer closes it."""
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


def test_an_answer_between_failures_begins_the_count_anew(circuits: CircuitBreakers) -> None:
    """Only failures in a row mean that the agent is away."""
    for _ in range(5):
        for works in (False, False, True):
            call(circuits, a_route(), works=works)
    assert circuits.open == 0


def test_only_one_call_tries_again(circuits: CircuitBreakers, clock: Clock) -> None:
    """The others are refused until its verdict; if that is a failure, for another pause."""
    route = broken(circuits)
    clock.seconds += 5
    with circuits.enter(route) as probe:
        assert refused(circuits, route) == 1
        probe.failed()
    assert refused(circuits, route) == 5


def test_a_probe_without_a_verdict_leaves_it_to_the_next(circuits: CircuitBreakers, clock: Clock) -> None:
    """Its caller left: nothing is known, and nobody waits for it."""
    route = broken(circuits)
    clock.seconds += 5
    for _ in range(3):
        assert refused(circuits, route) is None
    assert circuits.open == 1


def test_calls_from_before_an_answer_say_nothing_new(circuits: CircuitBreakers, clock: Clock) -> None:
    """An agent was frozen and is back: the calls that it let time out do not open the breaker."""
    route = a_route()
    old = [circuits.enter(route) for _ in range(FAILURES)]
    clock.seconds += 1
    call(circuits, route, works=True)
    end(old, works=False)
    assert circuits.open == 0


def test_late_failures_do_not_keep_it_open(circuits: CircuitBreakers, clock: Clock) -> None:
    """Calls that began before it opened have no say in when it is tried again; a late answer has."""
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
    """The verdicts of calls that were under way."""
    for permit in permits:
        with permit:
            (permit.answered if works else permit.failed)()


@pytest.mark.parametrize(
    "fields", [{"acp_url": "http://b"}, {"registered_at": datetime(2026, 1, 2, tzinfo=UTC)}], ids=["moved", "restarted"]
)
def test_a_deployment_that_announces_itself_starts_afresh(circuits: CircuitBreakers, fields: dict[str, Any]) -> None:
    """At another address, or again at the same one."""
    broken(circuits)
    assert refused(circuits, a_route(**fields)) is None
    assert circuits.open == 0


def test_others_do_not_notice(circuits: CircuitBreakers) -> None:
    """Another deployment, and the legacy address of the same agent."""
    broken(circuits)
    assert refused(circuits, a_route("v2")) is None
    assert refused(circuits, a_route(None)) is None


def test_so_many_calls_at_a_time_and_no_more(circuits: CircuitBreakers) -> None:
    """The one too many is told to come again soon; each that ends makes room."""
    permits = [circuits.enter(a_route()) for _ in range(10)]
    with pytest.raises(TooManyCalls) as error:
        circuits.enter(a_route())
    assert error.value.retry_after_seconds == 1
    assert refused(circuits, a_route("v2")) is None
    assert circuits.under_way == 10
    end(permits[:1], works=True)
    assert refused(circuits, a_route()) is None


def test_what_is_remembered_is_bounded(circuits: CircuitBreakers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of those that work; of broken ones so many, and never less than those with calls under way."""
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
