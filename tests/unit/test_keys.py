from uuid import UUID

import pytest

from services.api_keys import agent_api_key, same_secret


def test_an_agent_s_key_is_derived_from_the_secret_and_the_agent() -> None:
    """The same each time, another one for another agent or secret, and never stored."""
    key = agent_api_key("secret", UUID(int=1))
    assert key == agent_api_key("secret", UUID(int=1)) == "pak_" + key[4:]
    assert len({key, agent_api_key("secret", UUID(int=2)), agent_api_key("other", UUID(int=1))}) == 3


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [("key", "key", True), ("key", "kez", False), ("", "key", False), ("key\udcff", "key", False), ("é", "é", True)],
)
def test_secrets_are_compared_whole(given: str, expected: str, *, same: bool) -> None:
    """Whatever bytes a header held, the answer is yes or no."""
    assert same_secret(given, expected) is same
