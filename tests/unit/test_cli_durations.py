from datetime import UTC, datetime, timedelta

import pytest
import typer

from podium.cli.durations import format_duration, parse_duration, parse_time


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
def test_durations_are_parsed(text: str, seconds: float) -> None:
    """A bare number is seconds; units can be combined."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "x", "10 m", "-1", "1w", "m10", "99999d", "1h30"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    """The parser does not guess."""
    with pytest.raises(typer.BadParameter):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0s"), (0.4, "0s"), (59, "59s"), (60, "1m"), (61, "1m 1s"), (3600, "1h"), (7260, "2h 1m"), (90_000, "1d 1h")],
)
def test_durations_are_shown_in_their_two_largest_units(seconds: float, shown: str) -> None:
    """Smaller units are left out."""
    assert format_duration(timedelta(seconds=seconds)) == shown


def test_a_time_is_absolute_or_a_duration_before_now() -> None:
    """With a time zone, without one, and as a duration."""
    assert parse_time("2026-01-31T12:00:00Z") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert parse_time("2026-01-31 12:00").tzinfo is not None
    then = parse_time("15m")
    assert timedelta(minutes=15) <= datetime.now(UTC) - then < timedelta(minutes=16)
    with pytest.raises(typer.BadParameter, match="is not a time"):
        parse_time("yesterday")
