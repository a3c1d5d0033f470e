"""The picture of calls per minute at a terminal."""

from podium.cli.calls import sparkline


def test_the_highest_bar_is_of_the_largest_number_and_a_blank_of_none() -> None:
    """A single call among thousands is still seen."""
    assert sparkline([0, 1, 500, 1000]) == " ▁▄█"
    assert sparkline([1, 1]) == "██"
    assert sparkline([0, 0]) == ""
