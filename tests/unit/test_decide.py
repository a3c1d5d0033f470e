from typing import Any
from uuid import UUID

import pytest

from contracts.messages import RegisterBuildRequest
from services.announcement import Announcement, Duplicate, Outcome, Registered, Rejected, Shadowed, Stale
from services.decide import CLOCK_TOLERANCE, decide, effective_time
from services.state import State
from tests.factories import (
    NOW,
    a_deployment,
    a_state,
    an_agent,
    an_announcement,
    an_id,
    in_production,
    moment,
)

OTHER_AGENT = UUID(int=99)
LOW, HIGH = UUID(int=1), UUID(int=2)


def told(state: State) -> list[str]:
    """The events of a decision."""
    return [event.type.removeprefix("podium.").removesuffix(".v1") for event in state.events]


def causes(state: State) -> list[str]:
    """The cut-overs of a decision."""
    return [row.cause for row in state.ledger]


def reason(outcome: Outcome) -> str:
    """Why a message was refused."""
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
def test_checks_come_in_the_order_of_the_plan(repaired: list[str], expected: str) -> None:
    """Of several things wrong with a message, the first check of design section 2, step 4, names the outcome."""
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
    """Rule 4: more than 30 s ahead counts as now; up to 30 s, and any time in the past, counts as it is."""
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
def test_only_a_greater_pair_applies(
    deployment_id: str | None, seconds: float, message_id: UUID, outcome: type[Outcome]
) -> None:
    """Rule 4: the newer time wins, and of equal times the greater message id; the same pair is not greater."""
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
    """Rule 16: the deletion of an agent outdates everything published before it."""
    state = a_state(an_agent(event_seq=0), name_deleted_at=moment(-30))
    _, actual = decide(state, an_announcement(deployment_id=deployment_id, seconds=seconds))
    assert isinstance(actual, outcome)


def test_a_known_message_changes_nothing() -> None:
    """Rule 3: decided once, a message has no effect when it comes again, whatever it says."""
    state = in_production(agent=an_agent(legacy_acp_url="http://old"))
    for message in (an_announcement(), an_announcement(deployment_id="v2"), an_announcement(agent_id="wrong")):
        assert decide(state, message, known=True) == (state, Duplicate())


@pytest.mark.parametrize(
    ("stored", "announced", "of_agent", "kept"),
    [
        (None, None, None, None),
        (None, None, "agent:1", "agent:1"),
        (None, "bot:1", "agent:1", "bot:1"),
        (None, "bot:1", None, "bot:1"),
        ("bot:1", None, "agent:1", "bot:1"),
        ("bot:1", "bot:1", "agent:1", "bot:1"),
        ("bot:1", "bot:2", "bot:2", "image-conflict"),
    ],
)
def test_the_first_image_named_stays(
    stored: str | None, announced: str | None, of_agent: str | None, kept: str | None
) -> None:
    """Rule 6: no image keeps the stored one, else takes the agent's; the first named fills in, another is refused."""
    state = a_state(an_agent(docker_image=of_agent), a_deployment("v1", docker_image=stored))
    after, outcome = decide(state, an_announcement(deployment_id="v1", docker_image=announced))
    if kept == "image-conflict":
        assert reason(outcome) == kept
        assert after == state
    else:
        assert after.deployments["v1"].docker_image == kept


def test_metadata_of_a_newer_registration_is_merged() -> None:
    """Rule 6: newer facts lie on top of older ones, which stay where nothing new is said."""
    stored = a_deployment("v1", registration_metadata={"git": {"commit": "a"}, "team": "mail"})
    message = an_announcement(deployment_id="v1", registration_metadata={"git": {"branch": "main"}})
    after, _ = decide(a_state(None, stored), message)
    expected = {"deployment_id": "v1", "git": {"branch": "main"}, "team": "mail"}
    assert after.deployments["v1"].registration_metadata == expected


def test_a_new_address_replaces_all_of_the_old_one() -> None:
    """Paths and error style belong to the address: not named again, they are the defaults again."""
    stored = a_deployment("v1", rpc_path="/old", health_path="/old", error_style="jsonrpc")
    after, _ = decide(a_state(None, stored), an_announcement(deployment_id="v1", acp_url="http://new"))
    version = after.deployments["v1"]
    address = (version.acp_url, version.rpc_path, version.health_path, version.error_style)
    assert address == ("http://new", "/api", "/healthz", "http")


def test_a_deployment_s_registration_leaves_the_agent_s_own_fields_alone() -> None:
    """Rule 8: a preview cannot change how its agent describes itself, nor where it serves as a legacy agent."""
    agent = an_agent(
        description="Mine.",
        acp_type="sync",
        agent_input_type="text",
        docker_image="agent:1",
        registration_metadata={"mine": True},
        legacy_acp_url="http://old",
        legacy_rpc_path="/old",
        generation=1,
        registered_at=moment(-60),
        registered_message_id=LOW,
        status="Ready",
    )
    message = an_announcement(
        deployment_id="v1",
        description="Theirs.",
        acp_type="agentic",
        agent_input_type="json",
        docker_image="bot:1",
        rpc_path="/new",
        team="theirs",
        seconds=0,
    )
    after, outcome = decide(a_state(agent), message)
    assert outcome == Registered()
    assert after.agent.event_seq == agent.event_seq + 2
    after_apart_from_events = {name: getattr(after.agent, name) for name in _fields(after) if name != "event_seq"}
    assert after_apart_from_events == {name: getattr(agent, name) for name in _fields(after) if name != "event_seq"}


def test_a_new_agent_takes_its_description_from_whoever_made_it() -> None:
    """The first deployment of a new agent describes it, since nobody else has."""
    message = an_announcement(deployment_id="v1", description="Answers mail.", acp_type="sync")
    after, _ = decide(a_state(an_agent(event_seq=0)), message)
    assert (after.agent.description, after.agent.acp_type, after.agent.legacy_acp_url) == (
        "Answers mail.",
        "sync",
        None,
    )
    assert told(after) == ["agent.registered", "deployment.created", "deployment.ready", "deployment.promoted"]


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
def test_states_do_not_lie(stored: dict[str, Any], seconds: float, status: str, events: list[str]) -> None:
    """Rule 15: a registration makes Pending Ready; it makes Failed Ready only if published after the verdict."""
    state = a_state(an_agent(auto_promote="never"), a_deployment("v1", **{"status_reason": "why", **stored}))
    after, outcome = decide(state, an_announcement(deployment_id="v1", acp_url="http://new", seconds=seconds))
    version = after.deployments["v1"]
    assert outcome == Registered()
    assert (version.status, version.acp_url) == (status, "http://new")
    assert [name.removeprefix("deployment.") for name in told(after)] == events
    if status == "Ready" and stored["status"] != "Ready":
        assert (version.status_changed_at, version.status_reason) == (NOW, None)


def test_ready_at_and_first_registered_at_are_those_of_the_first_time() -> None:
    """Failed and Ready again is not the first Ready: nothing is decided a second time."""
    failed = a_deployment("v1", status="Failed", status_changed_at=moment(-90), registered_at=moment(-100))
    after, _ = decide(a_state(None, failed), an_announcement(deployment_id="v1", seconds=-10))
    version = after.deployments["v1"]
    assert (version.ready_at, version.first_registered_at) == (failed.ready_at, failed.first_registered_at)
    assert causes(after) == []


def test_a_failed_production_that_comes_back_makes_its_agent_ready() -> None:
    """The agent's status follows what serves."""
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
def test_a_serving_deployment_tells_of_a_new_address_alone(change: dict[str, Any], events: list[str]) -> None:
    """`deployment.ready` also reports that production is dialled elsewhere now; no other repetition is news."""
    after, _ = decide(in_production(), an_announcement(deployment_id="v1", **change))
    assert told(after) == events
    preview, _ = decide(a_state(None, a_deployment()), an_announcement(deployment_id="v1", **change))
    assert told(preview) == []


LEGACY_AGENT: dict[str, Any] = {
    "legacy_acp_url": "http://old",
    "registered_at": moment(-900),
    "registered_message_id": LOW,
    "generation": 1,
    "event_seq": 1,
    "status": "Ready",
}


@pytest.mark.parametrize(
    ("seconds", "url", "status", "outcome", "serves"),
    [
        (-601, "http://new", "Ready", Shadowed(), "v1"),
        (-600, "http://new", "Ready", Shadowed(), "v1"),
        (-599, "http://new", "Ready", Registered(), None),
        (-599, "http://old", "Ready", Shadowed(), "v1"),
        (-599, "http://old", "Failed", Registered(), None),
        (-601, "http://old", "Failed", Shadowed(), "v1"),
        (-601, "http://new", "Failed", Shadowed(), "v1"),
        (-599, "http://new", "Failed", Registered(), None),
    ],
)
def test_when_a_legacy_message_takes_over(
    seconds: float, url: str, status: str, outcome: Outcome, serves: str | None
) -> None:
    """Rule 12: only if published after the promote, and with a new URL or while production is not Ready."""
    state = in_production(agent=an_agent(**LEGACY_AGENT), status=status)
    after, actual = decide(state, an_announcement(seconds=seconds, acp_url=url))
    assert actual == outcome
    assert after.agent.production_deployment_id == serves
    assert after.agent.legacy_acp_url == url
    assert causes(after) == ([] if serves else ["legacy"])
    assert after.agent.generation == (1 if serves else 2)
    news = ["agent.registered"] if url == "http://new" else []
    assert told(after) == (news if serves else ["deployment.demoted", *news])


def test_a_shadowed_message_is_still_the_newest() -> None:
    """Rule 12: the pair is written, so that an even older message cannot bring back an older URL."""
    state = in_production(agent=an_agent(**LEGACY_AGENT))
    state, _ = decide(state, an_announcement(seconds=-700, acp_url="http://newer"))
    state, outcome = decide(state, an_announcement(seconds=-800, acp_url="http://older"))
    assert outcome == Stale()
    assert state.agent.legacy_acp_url == "http://newer"


def test_a_legacy_agent_s_first_address_and_each_new_one_is_a_generation() -> None:
    """What serves changes with the legacy URL; `agent.registered` announces it, since no deployment moves."""
    state, _ = decide(a_state(an_agent(event_seq=0)), an_announcement(acp_url="http://one", seconds=-60))
    assert (state.agent.generation, state.agent.status, told(state)) == (1, "Ready", ["agent.registered"])
    state, _ = decide(state, an_announcement(acp_url="http://one", seconds=-50))
    assert (state.agent.generation, len(state.events)) == (1, 1)
    state, _ = decide(state, an_announcement(acp_url="http://one", seconds=-40, rpc_path="/new"))
    assert (state.agent.generation, len(state.events)) == (1, 2)
    state, _ = decide(state, an_announcement(acp_url="http://two", seconds=-30))
    assert (state.agent.generation, causes(state)) == (2, ["legacy", "legacy"])
    assert [event.generation for event in state.events] == [1, 1, 2]
    assert state.events[-1].data.model_dump()["acp_url"] == "http://two"


def test_what_a_legacy_message_leaves_out_stays() -> None:
    """Description, types, image and metadata are kept where a message is silent; silence is no news."""
    agent = an_agent(
        **LEGACY_AGENT,
        description="Answers mail.",
        acp_type="sync",
        agent_input_type="text",
        docker_image="bot:1",
        registration_metadata={"team": "mail"},
    )
    after, _ = decide(a_state(agent), an_announcement(acp_url="http://old"))
    kept = {name for name in _fields(after) if getattr(after.agent, name) == getattr(agent, name)}
    assert _fields(after) - kept == {"registered_at", "registered_message_id"}
    assert told(after) == []


def test_a_build_makes_an_agent_that_nothing_serves() -> None:
    """`register-build` tells of a new agent once; repeated, it is idempotent; no pair is written."""
    build = RegisterBuildRequest(name="support-bot", docker_image="bot:1", registration_metadata={"git": "a"})
    state, outcome = decide(a_state(an_agent(event_seq=0)), Announcement(build, an_id(), None))
    assert outcome == Registered()
    assert (state.agent.status, state.agent.docker_image, state.agent.newest) == ("BuildOnly", "bot:1", None)
    assert told(state) == ["agent.registered"]
    again, _ = decide(state, Announcement(build, an_id(), None))
    assert again == state


def test_a_first_deployment_of_a_build_serves_with_the_build_s_image() -> None:
    """Rule 6: a pod that names no image runs what was built; its agent is Ready then."""
    agent = an_agent(docker_image="bot:1")
    state, _ = decide(a_state(agent), an_announcement(deployment_id="v1"))
    assert (state.agent.status, state.agent.production_deployment_id) == ("Ready", "v1")
    assert state.deployments["v1"].docker_image == "bot:1"


def test_a_trace_travels_from_the_message_to_its_events() -> None:
    """Every event of a decision carries the trace context of what asked for it."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    state = a_state(an_agent(event_seq=0), traceparent=traceparent)
    after, _ = decide(state, an_announcement(deployment_id="v1"))
    assert [event.traceparent for event in after.events] == [traceparent] * 4


def _fields(state: State) -> set[str]:
    return set(type(state.agent).__dataclass_fields__)
