from datetime import UTC, datetime, timedelta

import pytest
import typer

from podium.cli.durations import parse_duration, parse_moment, short


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("1h", 3600),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("0.5", 0.5),
        ("250ms", 0.25),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    """A bare number is seconds; units can be combined."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "x", "10 m", "-1", "1w", "m10", "99999d", "1h30"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(typer.BadParameter):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0s"), (0.4, "0s"), (59, "59s"), (60, "1m"), (61, "1m 1s"), (3600, "1h"), (7260, "2h 1m"), (90_000, "1d 1h")],
)
def test_durations_are_shown_in_their_two_largest_units(seconds: float, shown: str) -> None:
    """Long ones lose what nobody needs."""
    assert short(timedelta(seconds=seconds)) == shown


def test_a_moment_is_a_time_or_how_long_ago_it_is() -> None:
    """With a zone, without one, and as a duration."""
    assert parse_moment("2026-01-31T12:00:00Z") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert parse_moment("2026-01-31 12:00").tzinfo is not None
    then = parse_moment("15m")
    assert timedelta(minutes=15) <= datetime.now(UTC) - then < timedelta(minutes=16)
    with pytest.raises(typer.BadParameter, match="is no time"):
        parse_moment("yesterday")
