"""Before production is Failed: the opinion of a second janitor, and calls that it has answered."""

from datetime import timedelta
from uuid import UUID

from msgspec.structs import replace

from services.domain.health_policy import ProbeResult, apply_probe
from services.domain.state import AgentSnapshot, DeploymentState
from tests.support.factories import NOW, a_deployment, a_state, event_types, in_production, moment
from tests.unit.test_health_policy import POLICY, REFUSED, target_of

ONE, TWO = (UUID(int=number) for number in (1, 2))


def failed_by(state: AgentSnapshot, *janitors: UUID, has_peer: bool = True, other_agent: bool = False) -> AgentSnapshot:
    """The state after one failed probe of each of these janitors."""
    for janitor_id in janitors:
        result = ProbeResult(target_of(state.deployments["v1"]), REFUSED, janitor_id, other_agent)
        state = apply_probe(state, result, has_peer=has_peer)
    return state


def version(state: AgentSnapshot) -> DeploymentState:
    """The only deployment."""
    return state.deployments["v1"]


def after_a_call(state: AgentSnapshot, seconds: float) -> AgentSnapshot:
    """The state in which a call was answered so many seconds from now."""
    failures = replace(version(state).failures, last_call_at=moment(seconds))
    return state.with_deployment(replace(version(state), failures=failures))


def test_production_is_failed_only_when_two_janitors_have_seen_it_fail() -> None:
    """The threshold stays the same, and so does the reason."""
    assert version(failed_by(in_production(), ONE, ONE, ONE)).status == "Ready"
    assert version(failed_by(in_production(), ONE, ONE, TWO)).status == "Failed"
    assert version(failed_by(in_production(), ONE, TWO, ONE)).status == "Failed"
    late = failed_by(in_production(), ONE, ONE, ONE, TWO)
    assert version(late).status_reason == f"3 probes in a row failed, the last one: {REFUSED}"
    assert event_types(late) == ["deployment.failed"]


def test_an_answer_to_the_second_janitor_restarts_the_count() -> None:
    """The first one cannot reach the pod."""
    state = failed_by(in_production(), ONE, ONE, ONE)
    state = apply_probe(state, ProbeResult(target_of(version(state)), None, TWO), has_peer=True)
    assert (version(state).probe_streak, version(state).failures.opinion_until) == (0, None)
    assert version(failed_by(state, ONE, ONE)).status == "Ready"


def test_production_does_not_wait_for_an_opinion_that_does_not_come() -> None:
    """A second janitor that does not probe it within an interval is not waited for."""
    waiting = failed_by(in_production(), ONE, ONE, ONE)
    assert version(waiting).failures.opinion_until == NOW + POLICY.interval
    assert version(failed_by(waiting, ONE)).status == "Ready"
    later = replace(waiting, now=NOW + POLICY.interval)
    assert version(failed_by(later, ONE)).status == "Failed"


def test_a_single_janitor_decides_alone() -> None:
    """No other one runs, or only ones in panic."""
    assert version(failed_by(in_production(), ONE, ONE, ONE, has_peer=False)).status == "Failed"


def test_a_preview_needs_no_second_opinion() -> None:
    """No traffic depends on it."""
    assert version(failed_by(a_state(None, a_deployment()), ONE, ONE, ONE)).status == "Failed"


def test_an_answered_call_restarts_the_count() -> None:
    """If it was answered after the first failed probe; a deployment that answers calls is alive."""
    state = failed_by(in_production(), ONE, ONE, has_peer=False)
    assert version(failed_by(after_a_call(state, -1), ONE, has_peer=False)).status == "Failed"
    alive = failed_by(replace(after_a_call(state, 1), now=moment(2)), ONE, has_peer=False)
    assert (version(alive).status, version(alive).probe_streak, version(alive).failures.since) == (
        "Ready",
        -1,
        moment(2),
    )
    dead = failed_by(replace(alive, now=moment(60)), ONE, ONE, has_peer=False)
    assert version(dead).status == "Failed"


def test_the_pod_of_another_agent_proves_nothing_by_answering_calls() -> None:
    """It has taken the address over."""
    state = after_a_call(failed_by(in_production(), ONE, ONE, has_peer=False), 1)
    stolen = failed_by(replace(state, now=NOW + timedelta(seconds=2)), ONE, has_peer=False, other_agent=True)
    assert version(stolen).status == "Failed"
