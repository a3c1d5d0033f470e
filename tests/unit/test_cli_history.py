"""The timeline that `podium history` draws at a terminal."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from podium.cli.history import Period, timeline

BEGIN = datetime(2026, 11, 23, 9, tzinfo=UTC)
NOW = BEGIN + timedelta(hours=10)


def period(name: str, since: float, until: float | None) -> Period:
    """A period between two times, in hours after the beginning."""
    end = None if until is None else BEGIN + timedelta(hours=until)
    return Period(name, BEGIN + timedelta(hours=since), end)


def drawn(*periods: Period, width: int = 60, encoding: str = "utf-8") -> list[str]:
    """The lines of the timeline; none if nothing is drawn."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, width=width, color_system=None)
    picture = timeline(periods, console, NOW)
    if picture is None:
        return []
    console.print(picture)
    out.seek(0)
    return [line.rstrip() for line in out.read().splitlines()]


def test_each_period_has_a_bar() -> None:
    """To scale, with a line per deployment, what serves now on top; from the first time to now."""
    axis, newest, middle, *more = drawn(period("v1", 8, None), period("v2", 4, 8), period("v1", 0, 4), width=52)
    assert (axis[:2], axis[-3:], more) == ("  ", "now", [])
    assert (axis[4:14], len(axis)) == ("2026-11-23", 52)
    # 48 characters for ten hours: rounded outwards to whole ones.
    assert newest == "v1  " + "█" * 20 + " " * 18 + "█" * 10
    assert middle == "v2  " + " " * 19 + "█" * 20


def test_a_short_period_is_visible() -> None:
    """A period of one second is one character, also at either end, and beside long periods."""
    second = 1 / 3600
    lines = drawn(
        period("last", 10 - second, None),
        period("middle", 5, 5 + second),
        period("long", second, 5),
        period("first", 0, second),
    )
    assert [line.count("█") for line in lines[1:]] == [1, 1, 26, 1]
    assert [line.index("█") for line in lines[1:]] == [59, 34, 8, 8]


def test_an_older_page_ends_at_its_last_time() -> None:
    """The scale covers only the periods that are shown."""
    axis, newest, _ = drawn(period("v2", 2, 4), period("v1", 0, 2))
    assert "now" not in axis
    assert axis.split()[-1].count(":") == 2
    assert newest.endswith("█")


@pytest.mark.parametrize("width", [48, 60, 80, 200])
def test_the_timeline_fits_the_terminal(width: int) -> None:
    """No line is wider, also with long ids; the whole ids are in the table below."""
    lines = drawn(period("x" * 128, 5, None), period("y\x1b" * 10, 0, 5), width=width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)


def test_nothing_is_drawn_without_two_periods_or_enough_width() -> None:
    """With no period, one period, or a narrow terminal."""
    two = (period("v2", 5, None), period("v1", 0, 5))
    assert drawn() == drawn(two[0]) == drawn(*two, width=47) == []
    assert drawn(*two)


def test_a_terminal_without_block_characters_gets_ascii() -> None:
    """For example in the C locale."""
    lines = drawn(period("v2", 5, None), period("v1", 0, 5), encoding="ascii")
    assert [line.count("#") for line in lines] == [0, 28, 28]


def test_changes_at_the_same_time_are_drawn() -> None:
    """A duration of zero is not a division by zero."""
    assert drawn(Period("v2", NOW, None), Period("v1", NOW, NOW))
