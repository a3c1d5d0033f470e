"""What commands print: tables, JSON or ids on stdout; notes and progress on stderr."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from podium.cli.durations import format_duration
from podium.printable import json_text, plain

# A spinner that is visible for a shorter time only flickers.
PROGRESS_AFTER_SECONDS = 0.7
# Into a file or a pipe, rows are printed whole.
UNLIMITED_WIDTH = 10_000

GAP = 2
MIN_WRAPPED_WIDTH = 12
NOTHING = "nothing"

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
    """A column of a table, and how it shrinks if the terminal is too narrow."""

    title: str
    # The column can be cut to this many characters; None: it is never cut.
    min_width: int | None = None
    # The column with the highest number is dropped first; 0: it is never dropped.
    drop_order: int = 0
    # Text is wrapped, not cut: for ids, which people copy.
    wraps: bool = False

    def width_of(self, cells: Sequence[str]) -> int:
        """The width that shows all of these cells whole."""
        return max(len(self.title), *(len(cell) for cell in cells), 1)


@dataclass
class _FittedColumn:
    column: Column
    cells: list[str]
    width: int


@dataclass
class ProgressText:
    """What a spinner shows; set `text` to change it."""

    text: str


def console(*, stderr: bool = False) -> Console:
    """A console without markup. It uses colours only at a terminal, and never if NO_COLOR is set."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else UNLIMITED_WIDTH
    return Console(
        stderr=stderr,
        width=width,
        markup=False,
        highlight=False,
        emoji=False,
        color_system=None if os.environ.get("NO_COLOR") or not stream.isatty() else "auto",
    )


@dataclass
class Output:
    """Prints the result of a command in the format that its options ask for."""

    as_json: bool = False
    quiet: bool = False
    out: Console = field(default_factory=console)
    err: Console = field(default_factory=lambda: console(stderr=True))

    def json(self, result: Any) -> None:  # noqa: ANN401 - JSON
        """Print JSON."""
        sys.stdout.write(json_text(result, indent=2) + "\n")

    def rows(
        self, result: Sequence[Any], ids: Sequence[str], columns: Sequence[Column], rows: Sequence[Sequence[str]]
    ) -> None:
        """Print a list: `result` as JSON, or `ids` one per line, or `rows` as a table."""
        if self.as_json:
            self.json(result)
        elif self.quiet:
            sys.stdout.writelines(f"{plain(each)}\n" for each in ids)
        elif rows:
            self.show(table(columns, rows, self.out.width))

    def item(self, result: Any, name: str, *shown: RenderableType) -> None:  # noqa: ANN401 - JSON
        """Print one object: `result` as JSON, or its name, or `shown`."""
        if self.as_json:
            self.json(result)
        elif self.quiet:
            sys.stdout.write(f"{plain(name)}\n")
        else:
            self.show(*shown)

    def show(self, *shown: RenderableType) -> None:
        """Print formatted text, and sentences. Outside a terminal, lines have no blanks at their ends."""
        shown = tuple(Text(plain(each)) if isinstance(each, str) else each for each in shown)
        if self.out.is_terminal:
            self.out.print(*shown, sep="\n")
            return
        with self.out.capture() as captured:
            self.out.print(*shown, sep="\n")
        sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())

    def note(self, sentence: str) -> None:
        """Print a sentence on stderr, unless --json or --quiet is set."""
        if not (self.quiet or self.as_json):
            self.err.print(plain(sentence), style="dim", soft_wrap=True)

    def note_next_page(self, rows: Sequence[Any], limit: int, page: int) -> None:
        """Note the option for the next page if this page is full."""
        if len(rows) == limit:
            self.note(f"There may be more rows: --page {page + 1}.")

    @asynccontextmanager
    async def progress(self, text: str) -> AsyncIterator[ProgressText]:
        """Show a spinner with this text while the block runs: at a terminal, and only if the block is slow."""
        shown = ProgressText(text)
        if self.quiet or not self.err.is_terminal:
            yield shown
            return
        spinning = asyncio.create_task(self._spin(shown))
        try:
            yield shown
        finally:
            spinning.cancel()
            with suppress(asyncio.CancelledError):
                await spinning

    async def _spin(self, shown: ProgressText) -> None:
        spinner = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self.err,
            transient=True,
        )
        task = spinner.add_task(plain(shown.text))
        await asyncio.sleep(PROGRESS_AFTER_SECONDS)
        with spinner:
            while True:
                spinner.update(task, description=plain(shown.text))
                await asyncio.sleep(0.1)


def end_at_closed_pipe() -> NoReturn:
    """End the command with exit code 0 because the reader of its output, such as `head`, has closed the pipe."""
    # Else the interpreter fails when it flushes the rest of the buffer at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Table:
    """The rows as a table of at most this width.

    Columns are cut first, then dropped in their order; ids are wrapped, not cut.
    """
    fitted = _fit(columns, [[plain(cell) for cell in row] for row in rows], width)
    shown = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    for each in fitted:
        wraps = each.column.wraps
        shown.add_column(
            each.column.title, width=each.width, no_wrap=not wraps, overflow="fold" if wraps else "ellipsis"
        )
    for cells in zip(*(each.cells for each in fitted), strict=True):
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    return shown


def details(pairs: Sequence[tuple[str, str | None]]) -> Table:
    """Names and values, one pair per line; pairs without a value are left out."""
    shown = Table.grid(padding=(0, GAP, 0, 0))
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            shown.add_row(plain(name), Text(plain(value), style=STYLES.get(value, "")))
    return shown


def parse_api_time(text: str | None) -> datetime | None:
    """A time as the API writes it."""
    return datetime.fromisoformat(text) if text else None


def local_time(text: str | None) -> str:
    """A time of the API as local date and time; `-` if there is none."""
    time = parse_api_time(text)
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else "-"


def short_time(text: str) -> str:
    """A time of the API in local time, without the date if it is today."""
    date, _, time = local_time(text).partition(" ")
    return time if date == f"{datetime.now().astimezone():%Y-%m-%d}" else f"{date} {time}"


def age(text: str | None) -> str:
    """How long ago a time of the API is; `-` if there is none."""
    time = parse_api_time(text)
    return format_duration(datetime.now(UTC) - time) if time else "-"


def serving_name(agent: Mapping[str, Any]) -> str:
    """The name of what serves an agent now."""
    return served_name(agent["production_deployment_id"], agent["acp_url"])


def served_name(deployment_id: str | None, acp_url: str | None) -> str:
    """The name of what serves or served: the deployment's id, `legacy` with the address, or `nothing`."""
    if deployment_id is not None:
        return deployment_id
    return f"legacy {acp_url}" if acp_url is not None else NOTHING


def role_of(deployment: Mapping[str, Any]) -> str:
    """`production`, `preview` or `deleted`."""
    if deployment["expires_at"] is not None:
        return "deleted"
    return "production" if deployment["is_production"] else "preview"


def _fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[_FittedColumn]:
    by_column = [[row[position] for row in rows] for position in range(len(columns))]
    kept = [
        _FittedColumn(column, cells, column.width_of(cells)) for column, cells in zip(columns, by_column, strict=True)
    ]
    while True:
        available = width - GAP * (len(kept) - 1)
        cut = _cut(kept, available)
        dropped = max(kept, key=lambda each: each.column.drop_order)
        if sum(each.width for each in cut) <= available or not dropped.column.drop_order:
            return _wrap(cut, available)
        kept = [each for each in kept if each is not dropped]


def _cut(fitted: Sequence[_FittedColumn], available: int) -> list[_FittedColumn]:
    """Reduce columns to their minimum width as far as needed, the last column first."""
    cut = [replace(each) for each in fitted]
    for each in reversed(cut):
        excess = sum(other.width for other in cut) - available
        if excess > 0 and each.column.min_width is not None:
            min_width = max(each.column.min_width, len(each.column.title))
            each.width = max(min(each.width, min_width), each.width - excess)
    return cut


def _wrap(fitted: Sequence[_FittedColumn], available: int) -> list[_FittedColumn]:
    """Wrap ids where the row is still too wide."""
    wrapped = [replace(each) for each in fitted]
    for each in reversed(wrapped):
        excess = sum(other.width for other in wrapped) - available
        if excess > 0 and each.column.wraps:
            each.width = max(min(each.width, MIN_WRAPPED_WIDTH), each.width - excess)
    return wrapped
