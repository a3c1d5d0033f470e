"""Rows for the writing statements, as JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.events import AgentRegistered
from services.storage.statements import as_json
from tests.support.factories import an_agent

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@given(VALUES)
def test_what_a_pod_announced_stays_as_it_is(value: Any) -> None:
    """Numbers of any size and text of any language."""
    [row] = json.loads(as_json([an_agent(registration_metadata={"value": value})]))
    assert row["registration_metadata"]["value"] == value


def test_the_data_of_an_event_is_its_contract_s_json() -> None:
    """As consumers get it."""
    data = AgentRegistered(agent_id="1", agent_name="bot", description="ä", acp_type="async", acp_url=None)
    assert json.loads(as_json([{"payload": data}])) == [{"payload": data.model_dump(mode="json")}]


def test_nothing_else_is_stored_by_mistake() -> None:
    """An object of another type is a defect."""
    with pytest.raises(NotImplementedError):
        as_json([object()])
