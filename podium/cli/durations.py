"""Parsing and formatting of durations and times."""

import re
from datetime import datetime, timedelta

import typer

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_SECONDS = re.compile(r"\d+(?:\.\d+)?")
# Longer durations are mistakes, and `datetime` cannot represent times that are too far away.
_LONGEST = timedelta(days=3650)

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def parse_duration(text: str) -> timedelta:
    """The duration of `90` (seconds), `90s`, `10m`, `1h30m` or `2d`. Raises `typer.BadParameter`."""
    normalized = text.strip().lower()
    if _SECONDS.fullmatch(normalized):
        return _limited(float(normalized))
    if _WHOLE.fullmatch(normalized):
        return _limited(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(normalized)))
    raise typer.BadParameter(f"{text!r} is not a duration: write 90, 90s, 10m or 1h30m.")


def parse_time(text: str) -> datetime:
    """An ISO 8601 time (local if it has no zone), or a duration before now: `15m`. Raises `typer.BadParameter`."""
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return datetime.now().astimezone() - parse_duration(text)
    except typer.BadParameter:
        raise typer.BadParameter(
            f"{text!r} is not a time: write 2026-01-31T12:00:00Z, or 15m for fifteen minutes ago."
        ) from None


def format_duration(duration: timedelta) -> str:
    """The duration in its two largest units, as in `3d 4h`; `0s` for less than a second."""
    seconds = max(0, int(duration.total_seconds()))
    if seconds < _MINUTE:
        return f"{seconds}s"
    if seconds < _HOUR:
        return _two_units(seconds, (_MINUTE, "m"), (1, "s"))
    if seconds < _DAY:
        return _two_units(seconds, (_HOUR, "h"), (_MINUTE, "m"))
    return _two_units(seconds, (_DAY, "d"), (_HOUR, "h"))


def _two_units(seconds: int, large: tuple[int, str], small: tuple[int, str]) -> str:
    whole, rest = divmod(seconds, large[0])
    part = rest // small[0]
    return f"{whole}{large[1]} {part}{small[1]}" if part else f"{whole}{large[1]}"


def _limited(seconds: float) -> timedelta:
    if seconds > _LONGEST.total_seconds():
        raise typer.BadParameter(f"A duration can be at most {_LONGEST.days} days.")
    return timedelta(seconds=seconds)
