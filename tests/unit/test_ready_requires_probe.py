"""`ready_requires_probe`: the first answered probe makes a deployment Ready, not its announcement."""

from typing import Any

import pytest
from msgspec.structs import replace

from services.domain.health_policy import INTERVAL_SHARE, ProbeResult, apply_probe, wait_before_next
from services.domain.readiness import UNPROVEN
from services.domain.registration_policy import decide
from services.domain.state import AgentSnapshot
from tests.support.factories import (
    NOW,
    a_deployment,
    a_state,
    an_agent,
    an_announcement,
    causes,
    event_types,
    in_production,
    moment,
)
from tests.unit.test_health_policy import REFUSED, target_of


def announced(state: AgentSnapshot, deployment_id: str = "v1", **fields: Any) -> AgentSnapshot:
    """The state after an announcement, with the setting on."""
    state, _ = decide(replace(state, ready_requires_probe=True), an_announcement(deployment_id=deployment_id, **fields))
    return state


def answered(state: AgentSnapshot, deployment_id: str = "v1", failure: str | None = None) -> AgentSnapshot:
    """The state after a probe."""
    return apply_probe(state, ProbeResult(target_of(state.deployments[deployment_id]), failure))


def test_the_first_answer_makes_it_ready_and_decides_about_its_promotion() -> None:
    """Pending until then, however many probes fail: pods announce themselves before they listen on their port."""
    state = announced(a_state(an_agent(event_seq=0)), seconds=-60)
    waiting = state.deployments["v1"]
    assert (waiting.status, waiting.status_reason, waiting.ready_at) == ("Pending", UNPROVEN, None)
    assert event_types(state) == ["agent.registered", "deployment.created"]
    for _ in range(10):
        state = answered(state, failure=REFUSED)
    assert state.deployments["v1"].status == "Pending"
    state = answered(state)
    assert (state.deployments["v1"].status, state.deployments["v1"].ready_at) == ("Ready", NOW)
    assert event_types(state)[2:] == ["deployment.ready", "deployment.promoted"]
    assert causes(state) == ["first"]
    assert state.agent.status == "Ready"


@pytest.mark.parametrize(("seconds", "goes"), [(-59, True), (-61, False)])
def test_an_earlier_announcement_does_not_take_production_later(seconds: float, *, goes: bool) -> None:
    """Under `always`, the first announcement of a version counts, however late it answers or registers again."""
    production = in_production(agent=an_agent(auto_promote="always"), first_registered_at=moment(-60))
    state = announced(production, "v2", seconds=seconds)
    state = announced(state, "v2", seconds=-1)
    assert causes(answered(state, "v2")) == (["always"] if goes else [])


def test_a_ready_version_that_registers_again_stays_ready() -> None:
    """Only `threshold` failures in a row make it Failed."""
    state = announced(in_production(), seconds=-10, acp_url="http://new")
    assert state.deployments["v1"].status == "Ready"
    assert event_types(state) == ["deployment.ready"]


@pytest.mark.parametrize("is_production", [True, False])
def test_a_failed_version_that_announces_itself_again_needs_one_answer(*, is_production: bool) -> None:
    """Failed until then, in production or not: no call goes to a deployment that has not answered."""
    failed: dict[str, Any] = {"status": "Failed", "status_changed_at": moment(-60), "probe_streak": -6}
    state = in_production(**failed) if is_production else a_state(None, a_deployment(**failed))
    assert answered(state).deployments["v1"].status == "Failed"
    state = announced(state, seconds=-10)
    assert (state.deployments["v1"].status, state.deployments["v1"].probe_streak) == ("Failed", 0)
    state = answered(answered(state, failure=REFUSED))
    assert state.deployments["v1"].status == "Ready"
    assert causes(state) == []


def test_one_that_never_answered_in_time_may_try_again() -> None:
    """Failed by its deadline, it is Pending again after a new announcement; a repeated one has no effect."""
    never: dict[str, Any] = {"status": "Failed", "status_changed_at": moment(-60), "ready_at": None}
    state = announced(a_state(None, a_deployment(**never)), seconds=-10)
    assert (state.deployments["v1"].status, state.deployments["v1"].status_changed_at) == ("Pending", NOW)
    later = announced(replace(state, now=moment(30)), seconds=20)
    assert later.deployments["v1"].status_changed_at == NOW


def test_the_first_probes_follow_quickly() -> None:
    """At least as often as others."""
    state = announced(a_state(an_agent(event_seq=0)))
    waits = []
    for _ in range(8):
        waits.append(wait_before_next(target_of(state.deployments["v1"]), 0).total_seconds() / INTERVAL_SHARE)
        state = answered(state, failure=REFUSED)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
