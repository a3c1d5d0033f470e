import pytest
from msgspec.structs import replace

from contracts.events import DeploymentDemoted, DeploymentPromoted, Serving
from services.domain.cutover import cutover
from services.domain.state import AgentSnapshot
from tests.support.factories import ADDRESS, NOW, a_deployment, a_state, an_agent, in_production, moment

LEGACY = an_agent(legacy_acp_url="http://old", docker_image="agent:1", generation=1, status="Ready")
LEGACY_SERVES = Serving(deployment_id=None, acp_url="http://old", docker_image="agent:1")
V1 = Serving(deployment_id="v1", acp_url=ADDRESS, docker_image="bot:1")


def state_before(what: str) -> AgentSnapshot:
    """An agent served by nothing, its legacy address or v1; v2 is a Ready preview."""
    preview = a_deployment("v2", docker_image="bot:2")
    if what == "nothing":
        return a_state(None, preview)
    if what == "legacy":
        return a_state(LEGACY, preview, last_cutover_at=moment(-60))
    agent = LEGACY if what == "v1 over legacy" else an_agent()
    return in_production("v1", agent=agent, docker_image="bot:1").with_deployment(preview)


@pytest.mark.parametrize(
    ("what", "to", "event", "before"),
    [
        ("nothing", "v2", DeploymentPromoted, None),
        ("legacy", "v2", DeploymentPromoted, LEGACY_SERVES),
        ("v1", "v2", DeploymentPromoted, V1),
        ("v1", None, DeploymentDemoted, V1),
        ("v1 over legacy", None, DeploymentDemoted, V1),
    ],
)
def test_each_generation_is_announced_by_one_event(
    what: str, to: str | None, event: type, before: Serving | None
) -> None:
    """G14: `promoted` (with `previous`) if a deployment serves after it, `demoted` if one served only before it."""
    state = state_before(what)
    after = cutover(state, to, cause="manual", actor="amy", reason="why")
    (emitted,) = after.events
    (entry,) = after.ledger
    assert type(emitted.data) is event
    assert emitted.generation == entry.generation == after.agent.generation == state.agent.generation + 1
    assert (entry.before, entry.at, entry.actor, entry.reason) == (before, NOW, "amy", "why")
    assert after.agent.production_deployment_id == to
    if isinstance(emitted.data, DeploymentPromoted):
        assert (emitted.subject, emitted.data.previous, emitted.data.promoted_at) == ("v2", before, NOW)
        assert (emitted.data.acp_url, emitted.data.docker_image) == (ADDRESS, "bot:2")
    else:
        assert isinstance(emitted.data, DeploymentDemoted)
        assert (emitted.subject, emitted.data.acp_url) == ("v1", state.agent.legacy_acp_url)


def test_a_change_of_the_legacy_address_alone_is_left_to_its_own_event() -> None:
    """G14: no deployment served before or after, so the caller's `agent.registered` reports the generation."""
    moved = replace(LEGACY, legacy_acp_url="http://new")
    after = cutover(state_before("legacy"), None, cause="legacy", actor="pod", agent=moved)
    (entry,) = after.ledger
    assert after.events == ()
    assert entry.before == LEGACY_SERVES
    assert entry.after == Serving(deployment_id=None, acp_url="http://new", docker_image="agent:1")


def test_flag_and_pointer_move_together() -> None:
    """The old flag is cleared and the new one is set, and only the new deployment gets `promoted_at`."""
    state = state_before("v1")
    after = cutover(state, "v2", cause="manual", actor="amy")
    assert [each.id for each in after.deployments.values() if each.is_production] == ["v2"]
    assert after.deployments["v1"].promoted_at == state.deployments["v1"].promoted_at
    assert after.deployments["v2"].promoted_at == NOW
    assert after.agent.legacy_acp_url == state.agent.legacy_acp_url


@pytest.mark.parametrize(
    ("last", "at"),
    [
        (None, NOW),
        (moment(-60), NOW),
        (moment(-0.000001), NOW),
        (NOW, moment(0.000001)),
        (moment(3600), moment(3600.000001)),
    ],
)
def test_the_ledger_s_time_moves_on_though_the_clock_does_not(last: object, at: object) -> None:
    """If the clock stood still or went back, the new generation is a microsecond after the one before."""
    state = replace(state_before("nothing"), last_cutover_at=last)
    after = cutover(state, "v2", cause="manual", actor="amy")
    assert after.ledger[0].at == at
    again = cutover(after, None, cause="rollback", actor="amy")
    assert again.ledger[1].at > after.ledger[0].at


def test_status_follows_what_serves() -> None:
    """BuildOnly if nothing serves, Failed with the reason of a Failed production, otherwise Ready."""
    failed = state_before("v1 over legacy").with_deployment(a_deployment("v2", status="Failed", status_reason="probe"))
    to_failed = cutover(failed, "v2", cause="manual", actor="amy")
    assert (to_failed.agent.status, to_failed.agent.status_reason) == ("Failed", "probe")
    to_legacy = cutover(to_failed, None, cause="rollback", actor="amy")
    assert (to_legacy.agent.status, to_legacy.agent.status_reason) == ("Ready", None)
    to_nothing = cutover(state_before("v1"), None, cause="agent_deleted", actor="amy")
    assert to_nothing.agent.status == "BuildOnly"
