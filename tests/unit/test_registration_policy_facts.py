from uuid import UUID

import pytest

from contracts.messages import RegisterBuildRequest
from services.domain.announcement import Announcement, Registered, Rejected
from services.domain.registration_policy import decide
from services.domain.state import AgentSnapshot
from tests.support.factories import a_deployment, a_state, an_agent, an_announcement, an_id, event_types, moment


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
    """G6: without an image the stored one stays, else the agent's is used; a second image is refused."""
    state = a_state(an_agent(docker_image=of_agent), a_deployment("v1", docker_image=stored))
    after, outcome = decide(state, an_announcement(deployment_id="v1", docker_image=announced))
    if kept == "image-conflict":
        assert isinstance(outcome, Rejected)
        assert outcome.error.reason == kept
        assert after == state
    else:
        assert after.deployments["v1"].docker_image == kept


def test_metadata_of_a_newer_registration_is_merged() -> None:
    """G6: newer facts replace older ones; facts that the message omits stay."""
    stored = a_deployment("v1", registration_metadata={"git": {"commit": "a"}, "team": "mail"})
    message = an_announcement(deployment_id="v1", registration_metadata={"git": {"branch": "main"}})
    after, _ = decide(a_state(None, stored), message)
    expected = {"deployment_id": "v1", "git": {"branch": "main"}, "team": "mail"}
    assert after.deployments["v1"].registration_metadata == expected


def test_a_new_address_replaces_all_of_the_old_one() -> None:
    """Paths and error style belong to the address: if omitted, they are reset to the defaults."""
    stored = a_deployment("v1", rpc_path="/old", health_path="/old", error_style="jsonrpc")
    after, _ = decide(a_state(None, stored), an_announcement(deployment_id="v1", acp_url="http://new"))
    version = after.deployments["v1"]
    address = (version.acp_url, version.rpc_path, version.health_path, version.error_style)
    assert address == ("http://new", "/api", "/healthz", "http")


def test_a_deployment_s_registration_leaves_the_agent_s_own_fields_alone() -> None:
    """G8: a preview changes neither its agent's self-description nor its legacy address."""
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
        registered_message_id=UUID(int=1),
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


def test_a_new_agent_takes_its_description_from_its_first_deployment() -> None:
    """The first deployment of a new agent describes it, since nothing else has."""
    message = an_announcement(deployment_id="v1", description="Answers mail.", acp_type="sync")
    after, _ = decide(a_state(an_agent(event_seq=0)), message)
    assert (after.agent.description, after.agent.acp_type, after.agent.legacy_acp_url) == (
        "Answers mail.",
        "sync",
        None,
    )
    assert event_types(after) == ["agent.registered", "deployment.created", "deployment.ready", "deployment.promoted"]


def test_a_build_makes_an_agent_that_nothing_serves() -> None:
    """`register-build` emits one event for a new agent; repeated, it is idempotent; it sets no time of registration."""
    build = RegisterBuildRequest(name="support-bot", docker_image="bot:1", registration_metadata={"git": "a"})
    state, outcome = decide(a_state(an_agent(event_seq=0)), Announcement(build, an_id(), None))
    assert outcome == Registered()
    assert (state.agent.status, state.agent.docker_image, state.agent.newest) == ("BuildOnly", "bot:1", None)
    assert event_types(state) == ["agent.registered"]
    again, _ = decide(state, Announcement(build, an_id(), None))
    assert again == state


def test_a_first_deployment_of_a_build_serves_with_the_build_s_image() -> None:
    """G6: a pod that names no image gets the image of the build; its agent is Ready then."""
    agent = an_agent(docker_image="bot:1")
    state, _ = decide(a_state(agent), an_announcement(deployment_id="v1"))
    assert (state.agent.status, state.agent.production_deployment_id) == ("Ready", "v1")
    assert state.deployments["v1"].docker_image == "bot:1"


def _fields(state: AgentSnapshot) -> set[str]:
    return set(type(state.agent).__struct_fields__)
