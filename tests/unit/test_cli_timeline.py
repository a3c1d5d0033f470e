"""The picture that `podium history` draws at a terminal."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from podium.cli.timeline import Stretch, timeline

BEGIN = datetime(2026, 11, 23, 9, tzinfo=UTC)
NOW = BEGIN + timedelta(hours=10)


def stretch(name: str, since: float, until: float | None) -> Stretch:
    """What served from so many hours after the beginning to so many."""
    end = None if until is None else BEGIN + timedelta(hours=until)
    return Stretch(name, BEGIN + timedelta(hours=since), end)


def drawn(*stretches: Stretch, width: int = 60, encoding: str = "utf-8") -> list[str]:
    """The lines of the picture; none if there is nothing to see."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, width=width, color_system=None)
    picture = timeline(stretches, console, NOW)
    if picture is None:
        return []
    console.print(picture)
    out.seek(0)
    return [line.rstrip() for line in out.read().splitlines()]


def test_a_bar_for_each_time_that_a_version_served() -> None:
    """In proportion, a line for each version, what serves now on top; from the first moment to now."""
    axis, newest, middle, *more = drawn(stretch("v1", 8, None), stretch("v2", 4, 8), stretch("v1", 0, 4), width=52)
    assert (axis[:2], axis[-3:], more) == ("  ", "now", [])
    assert (axis[4:14], len(axis)) == ("2026-11-23", 52)
    # 48 characters for ten hours: rounded outwards to whole ones.
    assert newest == "v1  " + "█" * 20 + " " * 18 + "█" * 10
    assert middle == "v2  " + " " * 19 + "█" * 20


def test_a_moment_is_seen_too() -> None:
    """What served for a second is one character, also at either end, and however long the rest was."""
    moment = 1 / 3600
    lines = drawn(
        stretch("last", 10 - moment, None),
        stretch("middle", 5, 5 + moment),
        stretch("long", moment, 5),
        stretch("first", 0, moment),
    )
    assert [line.count("█") for line in lines[1:]] == [1, 1, 26, 1]
    assert [line.index("█") for line in lines[1:]] == [59, 34, 8, 8]


def test_a_page_that_ended_long_ago_ends_with_its_last_moment() -> None:
    """The scale is that of what is shown."""
    axis, newest, _ = drawn(stretch("v2", 2, 4), stretch("v1", 0, 2))
    assert "now" not in axis
    assert axis.split()[-1].count(":") == 2
    assert newest.endswith("█")


@pytest.mark.parametrize("width", [48, 60, 80, 200])
def test_it_fits_the_terminal(width: int) -> None:
    """No line is longer, however long an id is; the whole ids are in the table below."""
    lines = drawn(stretch("x" * 128, 5, None), stretch("y\x1b" * 10, 0, 5), width=width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)


def test_nothing_is_drawn_where_there_is_nothing_to_see() -> None:
    """No bars, one bar, or a terminal too narrow for them."""
    two = (stretch("v2", 5, None), stretch("v1", 0, 5))
    assert drawn() == drawn(two[0]) == drawn(*two, width=47) == []
    assert drawn(*two)


def test_a_terminal_without_block_characters_gets_plain_ones() -> None:
    """Such as that of a C locale."""
    lines = drawn(stretch("v2", 5, None), stretch("v1", 0, 5), encoding="ascii")
    assert [line.count("#") for line in lines] == [0, 28, 28]


def test_changes_in_one_instant_are_drawn() -> None:
    """Nothing is divided by nothing."""
    assert drawn(Stretch("v2", NOW, None), Stretch("v1", NOW, NOW))
