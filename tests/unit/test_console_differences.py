"""Differences that the console shows: what a hostile card or metadata costs."""

from typing import Any

from api.console.differences import card_differences
from api.console.words import PATH_MAX, facts


def test_long_names_are_not_repeated_for_each_value_below_them() -> None:
    """The texts of all paths together are not longer than the card, however long the names in it are."""
    values = {f"k{number}": number for number in range(3000)}
    named = [{"id": f"i{number}"} for number in range(3000)]
    for card in ({"k" * 20_000: values}, {"a": {"k" * 20_000: values}}, {"k" * 20_000: named}):
        assert sum(map(len, facts(card))) <= 20_000
        assert [len(each.name) for each in card_differences({}, card)] in ([20_000], [1])
    deep: dict[str, Any] = {"end": 1}
    for _ in range(500):
        deep = {"n": deep, "m": 1}
    found = facts(deep)
    assert max(map(len, found)) <= PATH_MAX
    assert facts({"a": {"b": {"c": 1}, "d": [2]}}) == {"a.b.c": 1, "a.d": [2]}
