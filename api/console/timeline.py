"""The timeline of what served: the periods of the ledger as bars of a picture that is 1000 units wide."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.promotion.history import Change

WIDTH = 1000
# A period that is shorter on the picture is still seen.
NARROWEST = 2.0
RANGES: dict[str, timedelta | None] = {
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "all": None,
}
# How many changes of the ledger are read for the picture.
CHANGES = 200


@dataclass(frozen=True, slots=True)
class Bar:
    """One period: where it is drawn, and the change that began it."""

    x: float
    width: float
    change: Change


@dataclass(frozen=True, slots=True)
class Timeline:
    """The bars from the earliest to the latest, and the time of the left edge."""

    since: datetime
    bars: list[Bar]


def fitting_range(changes: Sequence[Change], now: datetime) -> str:
    """The whole history if it is short, else the last week."""
    week = timedelta(days=7)
    return "all" if all(now - each.promotion.at < week for each in changes) else "7d"


def timeline(changes: Sequence[Change], now: datetime, span: timedelta | None) -> Timeline:
    """The periods that reach into the last `span`; all of these changes without one. Nothing that served is no bar."""
    first = min((each.promotion.at for each in changes), default=now)
    since = first if span is None else now - span
    whole = max((now - since).total_seconds(), 1.0)
    bars = []
    for change in reversed(changes):
        ends = change.until or now
        if ends <= since or change.promotion.to_acp_url is None:
            continue
        x = max((change.promotion.at - since).total_seconds(), 0.0) / whole * WIDTH
        x = min(x, WIDTH - NARROWEST)
        width = max(min((ends - since).total_seconds(), whole) / whole * WIDTH - x, NARROWEST)
        bars.append(Bar(round(x, 1), round(width, 1), change))
    return Timeline(since, bars)
