"""What served when, drawn: a line for each version, a bar for each time that it served."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil, floor

from rich.console import Console
from rich.table import Table
from rich.text import Text

from podium.cli.plain import plain
from podium.cli.tables import GAP

# Narrower than this, or with less than two bars, there is nothing to see.
LEAST_WIDTH = 48
LEAST_STRETCHES = 2
WIDEST_NAME = 3  # of the terminal: a third
FULL, PLAIN = "█", "#"
WRITTEN = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True)
class Stretch:
    """A time in which something served; without an end it still does."""

    name: str
    since: datetime
    until: datetime | None


def timeline(stretches: Sequence[Stretch], console: Console, now: datetime) -> Table | None:
    """The stretches, newest first, drawn to the width of the terminal; None where there is nothing to see.

    What is shorter than a character is drawn as one.
    """
    if console.width < LEAST_WIDTH or len(stretches) < LEAST_STRETCHES:
        return None
    names = list(dict.fromkeys(each.name for each in stretches))
    widest = min(max(map(len, names)), console.width // WIDEST_NAME)
    room = console.width - widest - GAP
    begin, end = stretches[-1].since, stretches[0].until or now
    drawn = Table.grid(padding=(0, GAP, 0, 0))
    drawn.add_column(width=widest, no_wrap=True, overflow="ellipsis")
    drawn.add_column(width=room, no_wrap=True)
    drawn.add_row("", _axis(begin, None if stretches[0].until is None else end, room))
    mark = PLAIN if console.options.ascii_only else FULL
    for name in names:
        cells = [" "] * room
        for each in stretches:
            if each.name == name:
                first, last = _cells((each.since, each.until or now), (begin, end), room)
                cells[first:last] = mark * (last - first)
        serves = any(each.name == name and each.until is None for each in stretches)
        drawn.add_row(Text(plain(name)), Text("".join(cells), style="green" if serves else "cyan"))
    return drawn


def _cells(stretch: tuple[datetime, datetime], whole: tuple[datetime, datetime], room: int) -> tuple[int, int]:
    """Which of the characters a stretch covers: at least one."""
    span = (whole[1] - whole[0]).total_seconds()
    if span <= 0:
        return 0, room
    first, last = ((moment - whole[0]).total_seconds() / span * room for moment in stretch)
    left = min(max(floor(first), 0), room - 1)
    return left, min(max(ceil(last), left + 1), room)


def _axis(begin: datetime, end: datetime | None, room: int) -> Text:
    """The first moment on the left, the last one on the right, or that it is now; shortened to fit."""
    ends = (begin.astimezone(), end.astimezone() if end else None)
    for written in (WRITTEN, WRITTEN.split()[1], WRITTEN.split()[1].removesuffix(":%S")):
        left, right = (f"{each:{written}}" if each else "now" for each in ends)
        if len(left) + len(right) < room:
            break
    return Text(left + right.rjust(room - len(left)), style="dim")
