from uuid import UUID

import pytest

from services.api_keys import agent_api_key, same_secret


def test_an_agent_key_is_derived_from_the_secret_and_the_agent() -> None:
    """The same inputs give the same key; another agent or secret gives another key."""
    key = agent_api_key("secret", UUID(int=1))
    assert key == agent_api_key("secret", UUID(int=1)) == "pak_" + key[4:]
    assert len({key, agent_api_key("secret", UUID(int=2)), agent_api_key("other", UUID(int=1))}) == 3


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [("key", "key", True), ("key", "kez", False), ("", "key", False), ("key\udcff", "key", False), ("é", "é", True)],
)
def test_secrets_are_compared_as_bytes(given: str, expected: str, *, same: bool) -> None:
    """Any header value compares without an error, including bytes that are not UTF-8."""
    assert same_secret(given, expected) is same
