from typing import Any
from uuid import UUID

import pytest

from services.domain.announcement import Outcome, Registered, Shadowed, Stale
from services.domain.registration_policy import decide
from services.domain.state import AgentState
from tests.support.factories import a_state, an_agent, an_announcement, causes, event_types, in_production, moment

LEGACY_AGENT: dict[str, Any] = {
    "legacy_acp_url": "http://old",
    "registered_at": moment(-900),
    "registered_message_id": UUID(int=1),
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
    """G12: only if published after the promote, and with a new URL or while production is not Ready."""
    state = in_production(agent=an_agent(**LEGACY_AGENT), status=status)
    after, actual = decide(state, an_announcement(seconds=seconds, acp_url=url))
    assert actual == outcome
    assert after.agent.production_deployment_id == serves
    assert after.agent.legacy_acp_url == url
    assert causes(after) == ([] if serves else ["legacy"])
    assert after.agent.generation == (1 if serves else 2)
    news = ["agent.registered"] if url == "http://new" else []
    assert event_types(after) == (news if serves else ["deployment.demoted", *news])


def test_a_shadowed_message_is_still_the_newest() -> None:
    """G12: its time and id are stored, so that an even older message cannot bring back an older URL."""
    state = in_production(agent=an_agent(**LEGACY_AGENT))
    state, _ = decide(state, an_announcement(seconds=-700, acp_url="http://newer"))
    state, outcome = decide(state, an_announcement(seconds=-800, acp_url="http://older"))
    assert outcome == Stale()
    assert state.agent.legacy_acp_url == "http://newer"


def test_a_legacy_agent_s_first_address_and_each_new_one_is_a_generation() -> None:
    """What serves changes with the legacy URL; `agent.registered` reports it, since no deployment moves."""
    state, _ = decide(a_state(an_agent(event_seq=0)), an_announcement(acp_url="http://one", seconds=-60))
    assert (state.agent.generation, state.agent.status, event_types(state)) == (1, "Ready", ["agent.registered"])
    state, _ = decide(state, an_announcement(acp_url="http://one", seconds=-50))
    assert (state.agent.generation, len(state.events)) == (1, 1)
    state, _ = decide(state, an_announcement(acp_url="http://one", seconds=-40, rpc_path="/new"))
    assert (state.agent.generation, len(state.events)) == (1, 2)
    state, _ = decide(state, an_announcement(acp_url="http://two", seconds=-30))
    assert (state.agent.generation, causes(state)) == (2, ["legacy", "legacy"])
    assert [event.generation for event in state.events] == [1, 1, 2]
    assert state.events[-1].data.model_dump()["acp_url"] == "http://two"


def test_what_a_legacy_message_leaves_out_stays() -> None:
    """Description, types, image and metadata stay if a message omits them, and no event is emitted."""
    agent = an_agent(
        **LEGACY_AGENT,
        description="Answers mail.",
        acp_type="sync",
        agent_input_type="text",
        docker_image="bot:1",
        registration_metadata={"team": "mail"},
    )
    after, _ = decide(a_state(agent), an_announcement(acp_url="http://old"))
    fields = set(AgentState.__struct_fields__)
    kept = {name for name in fields if getattr(after.agent, name) == getattr(agent, name)}
    assert fields - kept == {"registered_at", "registered_message_id"}
    assert event_types(after) == []
