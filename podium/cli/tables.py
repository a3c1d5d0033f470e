"""Tables that fit: columns shrink, then leave, least important first, until a row has one line of the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table
from rich.text import Text

from podium.cli.plain import plain

GAP = 2
LEAST_FOLDED = 12

STYLES = {
    "Ready": "green",
    "Registered": "green",
    "Pending": "yellow",
    "Stale": "yellow",
    "Shadowed": "yellow",
    "Failed": "red",
    "Rejected": "red",
    "Parked": "red",
    "Deleted": "red",
    "production": "bold",
}


@dataclass(frozen=True)
class Column:
    """One column. `least` characters are enough of it; the highest `leaves` goes first, 0 stays always."""

    title: str
    least: int | None = None
    leaves: int = 0
    folds: bool = False

    def width_of(self, cells: Sequence[str]) -> int:
        """What it takes to show all of it."""
        return max(len(self.title), *(len(cell) for cell in cells), 1)


@dataclass
class _Fitted:
    column: Column
    cells: list[str]
    width: int


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Table:
    """The rows as a table of at most this width; ids are folded rather than cut, since people copy them."""
    fitted = _fit(columns, [[plain(cell) for cell in row] for row in rows], width)
    shown = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    for each in fitted:
        folds = each.column.folds
        shown.add_column(
            each.column.title, width=each.width, no_wrap=not folds, overflow="fold" if folds else "ellipsis"
        )
    for cells in zip(*(each.cells for each in fitted), strict=True):
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    return shown


def facts(pairs: Sequence[tuple[str, str]]) -> Table:
    """Names and values, one pair per line."""
    shown = Table.grid(padding=(0, GAP, 0, 0))
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in pairs:
        shown.add_row(name, Text(plain(value), style=STYLES.get(value, "")))
    return shown


def _fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[_Fitted]:
    by_column = [[row[position] for row in rows] for position in range(len(columns))]
    staying = [_Fitted(column, cells, column.width_of(cells)) for column, cells in zip(columns, by_column, strict=True)]
    while True:
        room = width - GAP * (len(staying) - 1)
        shrunk = _shrink(staying, room)
        leaving = max(staying, key=lambda each: each.column.leaves)
        if sum(each.width for each in shrunk) <= room or not leaving.column.leaves:
            return _fold(shrunk, room)
        staying = [each for each in staying if each is not leaving]


def _shrink(fitted: Sequence[_Fitted], room: int) -> list[_Fitted]:
    """With what may be cut cut as far as needed, the last column first."""
    shrunk = [replace(each) for each in fitted]
    for each in reversed(shrunk):
        excess = sum(other.width for other in shrunk) - room
        if excess > 0 and each.column.least is not None:
            least = max(each.column.least, len(each.column.title))
            each.width = max(min(each.width, least), each.width - excess)
    return shrunk


def _fold(fitted: Sequence[_Fitted], room: int) -> list[_Fitted]:
    """With ids folded, where nothing else helps."""
    folded = [replace(each) for each in fitted]
    for each in reversed(folded):
        excess = sum(other.width for other in folded) - room
        if excess > 0 and each.column.folds:
            each.width = max(min(each.width, LEAST_FOLDED), each.width - excess)
    return folded
