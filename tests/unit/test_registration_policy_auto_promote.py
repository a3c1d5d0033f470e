from datetime import datetime
from itertools import permutations

import pytest

from services.domain.readiness import should_auto_promote
from services.domain.registration_policy import decide
from services.domain.state import AgentSnapshot, AutoPromote
from tests.support.factories import a_deployment, a_state, an_agent, an_announcement, in_production, moment

CANDIDATE = a_deployment("v2", first_registered_at=moment(-60), ready_at=moment(0))


def preview_beside(what: str, *, paused: bool = False, policy: AutoPromote = "first") -> AgentSnapshot:
    """An agent that is served by `what`, and a candidate that has just become Ready."""
    agent = an_agent(auto_promote=policy, auto_promote_paused=paused)
    if what == "nothing":
        return a_state(agent, CANDIDATE)
    if what == "legacy":
        return a_state(
            an_agent(auto_promote=policy, auto_promote_paused=paused, legacy_acp_url="http://old"), CANDIDATE
        )
    first = moment(-30) if what == "newer production" else moment(-90)
    status = "Failed" if what == "Failed production" else "Ready"
    return in_production(agent=agent, first_registered_at=first, status=status).with_deployment(CANDIDATE)


@pytest.mark.parametrize(
    ("what", "first", "always"),
    [
        ("nothing", "first", "always"),
        ("legacy", None, "always"),
        ("production", None, "always"),
        ("Failed production", None, "always"),
        ("newer production", None, None),
    ],
)
def test_what_is_promoted_automatically(what: str, first: str | None, always: str | None) -> None:
    """G9: `first` only if nothing serves; `always` only if newer; `never` and paused: not at all."""
    assert should_auto_promote(preview_beside(what), CANDIDATE) == first
    assert should_auto_promote(preview_beside(what, policy="always"), CANDIDATE) == always
    assert should_auto_promote(preview_beside(what, policy="never"), CANDIDATE) is None
    for policy in ("first", "always", "never"):
        assert should_auto_promote(preview_beside(what, policy=policy, paused=True), CANDIDATE) is None


@pytest.mark.parametrize(
    ("production_first", "promote_requested", "goes"),
    [
        (moment(-61), None, True),
        (moment(-60), None, False),
        (moment(-59), None, False),
        (moment(-90), moment(-61), True),
        (moment(-90), moment(-60), False),
        (moment(-90), moment(-30), False),
        (moment(-30), moment(-90), False),
    ],
)
def test_always_takes_only_what_is_newer_than_production_and_than_the_last_promote(
    production_first: datetime, promote_requested: datetime | None, *, goes: bool
) -> None:
    """G9: under `always`, an older message never replaces a newer version or an explicit promote."""
    agent = an_agent(auto_promote="always", promote_requested_at=promote_requested)
    state = in_production(agent=agent, first_registered_at=production_first).with_deployment(CANDIDATE)
    assert (should_auto_promote(state, CANDIDATE) == "always") is goes


def test_a_deployment_is_considered_once() -> None:
    """G9: a deployment that was not promoted at its first Ready is not promoted by a later registration."""
    state = a_state(an_agent(auto_promote_paused=True))
    state, _ = decide(state, an_announcement(deployment_id="v1", seconds=-60))
    state = a_state(an_agent(auto_promote="always"), state.deployments["v1"])
    state, _ = decide(state, an_announcement(deployment_id="v1", seconds=-10, acp_url="http://new"))
    assert state.agent.production_deployment_id is None


def test_a_pending_deployment_is_not_considered_before_it_is_ready() -> None:
    """A Failed version whose verdict is newer than the message stays Failed, and is not promoted."""
    failed = a_deployment("v1", status="Failed", ready_at=None, first_registered_at=None, status_changed_at=moment(-30))
    state, _ = decide(a_state(None, failed), an_announcement(deployment_id="v1", seconds=-31))
    assert state.agent.production_deployment_id is None
    state, _ = decide(state, an_announcement(deployment_id="v1", seconds=-29))
    assert state.agent.production_deployment_id == "v1"


def test_under_always_the_newest_serves_in_whatever_order_messages_come() -> None:
    """G3: if each deployment registers once, the newest `registered_at` serves after every permutation."""
    messages = [an_announcement(deployment_id=f"v{age}", seconds=-age) for age in (1, 2, 3, 4, 5)]
    for order in permutations(messages):
        state = a_state(an_agent(auto_promote="always"))
        for message in order:
            state, _ = decide(state, message)
        assert state.agent.production_deployment_id == "v1"
