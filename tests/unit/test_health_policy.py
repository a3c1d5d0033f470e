from datetime import timedelta
from typing import Any

import pytest

from services.domain.health_policy import (
    INTERVAL_SHARE,
    ProbePolicy,
    ProbeResult,
    ProbeTarget,
    apply_probe,
    changes_nothing,
    expire,
    wait_before_next,
)
from services.domain.state import AgentSnapshot, DeploymentState
from tests.support.factories import (
    AGENT_ID,
    NOW,
    a_deployment,
    a_state,
    an_agent,
    causes,
    event_types,
    in_production,
    moment,
)

POLICY = ProbePolicy(interval=timedelta(seconds=30), threshold=3, timeout=timedelta(seconds=5))
REFUSED = "cannot connect (Connection refused)"


def target_of(deployment: DeploymentState) -> ProbeTarget:
    """The deployment as a janitor claims it."""
    return ProbeTarget(
        id=deployment.id,
        agent_id=deployment.agent_id,
        status=deployment.status,
        status_changed_at=deployment.status_changed_at,
        is_production=deployment.is_production,
        acp_url=deployment.acp_url or "",
        health_path=deployment.health_path,
        registered_at=deployment.registered_at,
        streak=deployment.probe_streak,
        on_failure="hold",
        policy=POLICY,
    )


def after(state: AgentSnapshot, answers: str, name: str = "v1") -> AgentSnapshot:
    """The state after these probes: `+` was answered, `-` failed."""
    for answer in answers:
        state = apply_probe(state, ProbeResult(target_of(state.deployments[name]), None if answer == "+" else REFUSED))
    return state


@pytest.mark.parametrize(
    ("status", "answers", "becomes"),
    [
        ("Ready", "--", "Ready"),
        ("Ready", "---", "Failed"),
        ("Ready", "--+--", "Ready"),
        ("Ready", "--+---", "Failed"),
        ("Ready", "-+-+-+-+-+", "Ready"),
        ("Failed", "++", "Failed"),
        ("Failed", "+++", "Ready"),
        ("Failed", "++-++", "Failed"),
        ("Failed", "-" * 20 + "+++", "Ready"),
        ("Ready", "+" * 20 + "---", "Failed"),
    ],
)
def test_only_results_in_a_row_change_a_status(status: Any, answers: str, becomes: str) -> None:
    """In both directions, and however long the deployment had its status."""
    state = after(a_state(None, a_deployment(status=status)), answers)
    assert state.deployments["v1"].status == becomes
    flips = [name for name in event_types(state) if name in {"deployment.ready", "deployment.failed"}]
    assert len(flips) == (status != becomes)


def test_a_failed_production_stays_in_production_with_its_reason() -> None:
    """The agent is Failed with it, and Ready again with it; nothing replaces it."""
    failed = after(in_production(), "---")
    assert failed.agent.production_deployment_id == "v1"
    assert (failed.agent.status, failed.agent.generation) == ("Failed", 1)
    assert failed.agent.status_reason == f"3 probes in a row failed, the last one: {REFUSED}"
    assert failed.events[-1].data.model_dump()["is_production"] is True
    ready = after(failed, "+++")
    assert (ready.agent.status, ready.agent.status_reason) == ("Ready", None)
    assert event_types(ready) == ["deployment.failed", "deployment.ready"]
    assert ready.deployments["v1"].status_changed_at == NOW


@pytest.mark.parametrize("policy", ["first", "always"])
def test_an_old_version_that_recovers_never_takes_production(policy: Any) -> None:
    """Automatic promotion is decided once, at the first Ready; not again, even if nothing serves."""
    newest = a_deployment("v2", status="Failed", first_registered_at=moment(-60))
    for state in (in_production(agent=an_agent(auto_promote=policy)), a_state(an_agent(auto_promote=policy))):
        recovered = after(state.with_deployment(newest), "+++", "v2")
        assert recovered.deployments["v2"].status == "Ready"
        assert causes(recovered) == []


@pytest.mark.parametrize(
    "change",
    [{"acp_url": "http://elsewhere"}, {"registered_at": moment(-1)}, {"expires_at": NOW}],
    ids=["moved", "announced itself anew", "deleted"],
)
def test_an_outdated_probe_result_changes_nothing(change: dict[str, Any]) -> None:
    """The result is from another pod."""
    target = target_of(a_deployment(probe_streak=-2))
    state = a_state(None, a_deployment(probe_streak=-2, **change))
    assert apply_probe(state, ProbeResult(target, REFUSED)) is state
    assert apply_probe(state, ProbeResult(target, None)) is state


def test_a_version_that_was_never_ready_does_not_become_so_by_answering() -> None:
    """Only its own announcement makes it Ready for the first time."""
    state = a_state(None, a_deployment(status="Failed", ready_at=None, first_registered_at=None))
    assert after(state, "++++").deployments["v1"].status == "Failed"


def test_a_result_that_only_confirms_needs_no_transaction() -> None:
    """A healthy deployment costs only its claim, and so does one that has been Failed for long."""
    healthy = a_deployment()
    assert changes_nothing(ProbeResult(target_of(healthy), None))
    assert not changes_nothing(ProbeResult(target_of(healthy), REFUSED))
    dead = after(a_state(None, a_deployment()), "-" * 20).deployments["v1"]
    assert changes_nothing(ProbeResult(target_of(dead), REFUSED))
    assert not changes_nothing(ProbeResult(target_of(dead), None))


def test_the_next_probe_is_within_the_interval() -> None:
    """Jitter makes it sooner; only a preview that keeps failing is probed less often, at most eight times less."""
    for deployment in (a_deployment(), a_deployment(status="Failed", is_production=True, probe_streak=-6)):
        waits = [wait_before_next(target_of(deployment), jitter).total_seconds() for jitter in (0, 0.5, 1)]
        assert waits == [29.4, 27.9, 26.4]
    preview = a_state(None, a_deployment())
    looks = [wait_before_next(target_of(after(preview, "-" * n).deployments["v1"]), 0) for n in range(9)]
    assert [wait.total_seconds() / INTERVAL_SHARE for wait in looks] == [30, 30, 30, 30, 60, 120, 240, 240, 240]
    recovering = after(preview, "-" * 9 + "+").deployments["v1"]
    assert wait_before_next(target_of(recovering), 0) == POLICY.interval * INTERVAL_SHARE


def test_a_version_that_waits_too_long_for_its_pod_is_failed() -> None:
    """After the deadline, not before; not if it became Ready or was deleted meanwhile."""
    deadline = timedelta(minutes=15)

    def waiting(**fields: Any) -> AgentSnapshot:
        pending = {"status": "Pending", "acp_url": None, "ready_at": None, "status_changed_at": moment(-900)}
        return a_state(None, a_deployment(**{**pending, **fields}))

    failed = expire(waiting(), "v1", deadline)
    assert failed.deployments["v1"].status_reason == "its pod did not announce itself within 15 minutes"
    assert event_types(failed) == ["deployment.failed"]
    for fields in ({"status_changed_at": moment(-899)}, {"status": "Ready"}, {"expires_at": NOW}):
        state = waiting(**fields)
        assert expire(state, "v1", deadline) is state
    assert failed.agent.id == AGENT_ID
