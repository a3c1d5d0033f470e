"""Calls per minute as a small picture: an SVG path without a script."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.calls.recent import CallHour

HEIGHT = 20
# A minute with a single call among thousands is still seen.
LOWEST = 1.5


@dataclass(frozen=True, slots=True)
class Sparkline:
    """Paths of bars, each one unit wide: of all calls, and of those that failed."""

    width: int
    height: int
    calls: str
    failures: str


def sparkline(hour: CallHour) -> Sparkline:
    """The picture of an hour."""
    most = max(count.calls for count in hour.minutes)
    return Sparkline(
        len(hour.minutes),
        HEIGHT,
        _bars([count.calls for count in hour.minutes], most),
        _bars([count.failures for count in hour.minutes], most),
    )


def _bars(counts: Sequence[int], most: int) -> str:
    return "".join(
        f"M{index + 0.1:g} {HEIGHT}v{-max(count / most * HEIGHT, LOWEST):.3g}h.8V{HEIGHT}z"
        for index, count in enumerate(counts)
        if count
    )
