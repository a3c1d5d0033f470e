from typing import Any
from uuid import UUID

import pytest

from services.domain.announcement import Duplicate, Outcome, Registered, Rejected, Stale
from services.domain.registration_policy import CLOCK_TOLERANCE, decide, effective_time
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

OTHER_AGENT = UUID(int=99)
LOW, HIGH = UUID(int=1), UUID(int=2)


def reason(outcome: Outcome) -> str:
    """The reason of a refusal."""
    assert isinstance(outcome, Rejected)
    return outcome.error.reason


@pytest.mark.parametrize(
    ("repaired", "expected"),
    [
        (["known"], "Duplicate"),
        ([], "Stale"),
        (["deletion"], "agent-id-mismatch"),
        (["deletion", "agent_id"], "deployment-of-another-agent"),
        (["deletion", "agent_id", "owner's name"], "deployment-deleted"),
        (["deletion", "agent_id", "owner"], "deployment-deleted"),
        (["deletion", "agent_id", "owner", "expiry"], "image-conflict"),
        (["deletion", "agent_id", "owner", "expiry", "image"], "Stale"),
        (["deletion", "agent_id", "owner", "expiry", "image", "pair"], "Registered"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "nothing",
)
def test_checks_come_in_a_fixed_order(repaired: list[str], expected: str) -> None:
    """If several things are wrong with a message, the first check in the order of `decide` gives the outcome."""
    stored: dict[str, Any] = {
        "agent_id": OTHER_AGENT,
        "agent_name": "mail-bot",
        "expires_at": moment(-10),
        "docker_image": "bot:1",
        "registered_at": moment(-60),
        "registered_message_id": HIGH,
    }
    if "owner's name" in repaired:
        stored |= {"agent_name": "support-bot", "expires_at": None}
    if "owner" in repaired:
        stored |= {"agent_id": an_agent().id, "agent_name": "support-bot"}
    if "expiry" in repaired:
        stored |= {"expires_at": None}
    state = a_state(an_agent(), a_deployment("v1", **stored))
    if "deletion" not in repaired:
        state = a_state(an_agent(), a_deployment("v1", **stored), name_deleted_at=moment(-30))
    message = an_announcement(
        deployment_id="v1",
        agent_id=None if "agent_id" in repaired else str(OTHER_AGENT),
        docker_image="bot:1" if "image" in repaired else "bot:2",
        message_id=LOW,
        seconds=-59 if "pair" in repaired else -60,
    )
    after, outcome = decide(state, message, known="known" in repaired)
    assert (reason(outcome) if isinstance(outcome, Rejected) else type(outcome).__name__) == expected
    assert (after == state) is (expected != "Registered")


@pytest.mark.parametrize(
    ("ahead", "counts_as"),
    [(-3600.0, -3600.0), (0.0, 0.0), (29.0, 29.0), (30.0, 30.0), (30.000001, 0.0), (31.0, 0.0), (10**9, 0.0)],
)
def test_a_clock_too_far_ahead_is_replaced_by_the_database_s(ahead: float, counts_as: float) -> None:
    """G4: more than 30 s ahead counts as now; up to 30 s ahead, and any time in the past, counts as it is."""
    assert CLOCK_TOLERANCE.total_seconds() == 30
    assert effective_time(moment(ahead), NOW) == moment(counts_as)
    after, _ = decide(a_state(), an_announcement(deployment_id="v1", seconds=ahead))
    assert after.deployments["v1"].registered_at == moment(counts_as)


def test_without_a_time_the_database_s_clock_dates_a_message() -> None:
    """Over HTTP a registration counts as published when it is decided."""
    assert effective_time(None, NOW) == NOW


@pytest.mark.parametrize("deployment_id", ["v1", None])
@pytest.mark.parametrize(
    ("seconds", "message_id", "outcome"),
    [(-61, HIGH, Stale), (-60, LOW, Stale), (-60, HIGH, Registered), (-59, LOW, Registered), (-59, HIGH, Registered)],
)
def test_only_a_newer_message_applies(
    deployment_id: str | None, seconds: float, message_id: UUID, outcome: type[Outcome]
) -> None:
    """G4: the newer time wins, and for equal times the greater message id; equal to both is not greater."""
    middle = UUID("00000000-0000-0000-0000-000000000001")
    pair: dict[str, Any] = {"registered_at": moment(-60), "registered_message_id": middle}
    state = a_state(an_agent(legacy_acp_url="http://old", generation=1, **pair), a_deployment("v1", **pair))
    message = an_announcement(deployment_id=deployment_id, seconds=seconds, message_id=message_id, acp_url="http://new")
    after, actual = decide(state, message)
    assert isinstance(actual, outcome)
    changed = after.deployments["v1"].acp_url if deployment_id else after.agent.legacy_acp_url
    assert (changed == "http://new") is (outcome is Registered)


@pytest.mark.parametrize(("seconds", "outcome"), [(-31, Stale), (-30, Registered), (-29, Registered)])
@pytest.mark.parametrize("deployment_id", ["v1", None])
def test_a_message_from_before_the_deletion_of_its_name_is_stale(
    seconds: float, outcome: type[Outcome], deployment_id: str | None
) -> None:
    """G16: the deletion of an agent makes everything stale that was published before it."""
    state = a_state(an_agent(event_seq=0), name_deleted_at=moment(-30))
    _, actual = decide(state, an_announcement(deployment_id=deployment_id, seconds=seconds))
    assert isinstance(actual, outcome)


def test_a_known_message_changes_nothing() -> None:
    """G3: once decided, a message has no effect when it is delivered again, whatever it says."""
    state = in_production(agent=an_agent(legacy_acp_url="http://old"))
    for message in (an_announcement(), an_announcement(deployment_id="v2"), an_announcement(agent_id="wrong")):
        assert decide(state, message, known=True) == (state, Duplicate())


@pytest.mark.parametrize(
    ("stored", "seconds", "status", "events"),
    [
        (
            {"status": "Pending", "acp_url": None, "ready_at": None, "first_registered_at": None},
            -60,
            "Ready",
            ["ready"],
        ),
        ({"status": "Ready"}, -60, "Ready", []),
        ({"status": "Failed", "status_changed_at": moment(-60)}, -61, "Failed", []),
        ({"status": "Failed", "status_changed_at": moment(-60)}, -60, "Failed", []),
        ({"status": "Failed", "status_changed_at": moment(-60)}, -59, "Ready", ["ready"]),
    ],
)
def test_a_registration_sets_the_status(stored: dict[str, Any], seconds: float, status: str, events: list[str]) -> None:
    """G15: a registration makes Pending Ready; it makes Failed Ready only if published after the verdict."""
    state = a_state(an_agent(auto_promote="never"), a_deployment("v1", **{"status_reason": "why", **stored}))
    after, outcome = decide(state, an_announcement(deployment_id="v1", acp_url="http://new", seconds=seconds))
    version = after.deployments["v1"]
    assert outcome == Registered()
    assert (version.status, version.acp_url) == (status, "http://new")
    assert [name.removeprefix("deployment.") for name in event_types(after)] == events
    if status == "Ready" and stored["status"] != "Ready":
        assert (version.status_changed_at, version.status_reason) == (NOW, None)


def test_ready_at_and_first_registered_at_are_those_of_the_first_time() -> None:
    """Ready again after Failed is not the first Ready: automatic promotion is not decided again."""
    failed = a_deployment("v1", status="Failed", status_changed_at=moment(-90), registered_at=moment(-100))
    after, _ = decide(a_state(None, failed), an_announcement(deployment_id="v1", seconds=-10))
    version = after.deployments["v1"]
    assert (version.ready_at, version.first_registered_at) == (failed.ready_at, failed.first_registered_at)
    assert causes(after) == []


def test_a_failed_production_that_comes_back_makes_its_agent_ready() -> None:
    """The agent's status is derived from what serves it."""
    state = in_production(status="Failed", status_reason="probe", status_changed_at=moment(-90))
    after, _ = decide(state, an_announcement(deployment_id="v1", seconds=-10))
    assert (after.agent.status, after.agent.status_reason) == ("Ready", None)


@pytest.mark.parametrize(
    ("change", "events"),
    [
        ({}, []),
        ({"acp_url": "http://new"}, ["deployment.ready"]),
        ({"rpc_path": "/new"}, ["deployment.ready"]),
        ({"health_path": "/new"}, []),
        ({"team": "mail"}, []),
    ],
)
def test_production_reports_only_a_new_address(change: dict[str, Any], events: list[str]) -> None:
    """`deployment.ready` also reports a new address of production; other repeated registrations emit nothing."""
    after, _ = decide(in_production(), an_announcement(deployment_id="v1", **change))
    assert event_types(after) == events
    preview, _ = decide(a_state(None, a_deployment()), an_announcement(deployment_id="v1", **change))
    assert event_types(preview) == []


def test_a_trace_travels_from_the_message_to_its_events() -> None:
    """Every event of a decision carries the trace context of its message."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    state = a_state(an_agent(event_seq=0), traceparent=traceparent)
    after, _ = decide(state, an_announcement(deployment_id="v1"))
    assert [event.traceparent for event in after.events] == [traceparent] * 4
