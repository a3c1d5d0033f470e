"""`podium history`: what served an agent and when, as a table, and at a terminal also as a timeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from podium.cli.command import AgentArgument, CommandContext, Limit, Page, command
from podium.cli.durations import format_duration, parse_time
from podium.cli.output import GAP, NOTHING, Column, Output, local_time, parse_api_time, served_name
from podium.printable import plain

COLUMNS = [
    Column("SINCE"),
    Column("FOR"),
    Column("SERVED", min_width=18, wraps=True),
    Column("WHY", min_width=16, wraps=True),
    Column("BY", min_width=8, drop_order=1),
    Column("GENERATION", drop_order=2),
]

CAUSES = {
    "first": "the first to be Ready",
    "always": "promoted automatically",
    "manual": "promoted",
    "rollback": "rolled back",
    "legacy": "legacy address",
    "agent_deleted": "agent deleted",
}

# A narrower timeline, or one with a single bar, shows nothing.
MIN_TIMELINE_WIDTH = 48
MIN_PERIODS = 2
# A name takes at most a third of the width.
NAME_FRACTION = 3
FULL_BLOCK, ASCII_BLOCK = "█", "#"
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%H:%M:%S", "%H:%M")

Row = dict[str, Any]


@command
async def history(
    context: CommandContext,
    agent: AgentArgument,
    at: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_time,
            metavar="TIME",
            help="Show only what served at this time: ISO 8601, or a duration before now such as 15m.",
        ),
    ] = None,
    limit: Limit = 50,
    page: Page = 1,
) -> None:
    """Show what served an agent: when, why, and by whom.

    At a terminal, a timeline is drawn above the table.
    """
    output = context.output
    async with output.progress("Reading the ledger"):
        found = await context.api.agent(agent)
        query = {"at": at.astimezone(UTC).isoformat()} if at else {"limit": limit, "page_number": page}
        rows: list[Row] = await context.api.get(f"/agents/{found['id']}/promotions", **query)
    names = [served_name(row["to_deployment_id"], row["to_acp_url"]) for row in rows]
    if output.out.is_terminal and not (output.as_json or output.quiet):
        _show_timeline(output, rows, names)
    output.rows(rows, names, COLUMNS, [_cells(row) for row in rows])
    if not rows:
        output.note(f"Nothing served {found['name']} {'yet' if page == 1 else 'before that'}.")
    if at is None:
        output.note_next_page(rows, limit, page)


def _show_timeline(output: Output, rows: list[Row], names: list[str]) -> None:
    periods = [
        Period(name, datetime.fromisoformat(row["at"]), parse_api_time(row["until"]))
        for name, row in zip(names, rows, strict=True)
        if name != NOTHING
    ]
    drawn = timeline(periods, output.out, datetime.now(UTC))
    if drawn is not None:
        output.show(drawn, "")


def _cells(row: Row) -> list[str]:
    until = parse_api_time(row["until"])
    name = served_name(row["to_deployment_id"], row["to_acp_url"])
    duration = format_duration((until or datetime.now(UTC)) - datetime.fromisoformat(row["at"]))
    return [
        local_time(row["at"]),
        duration if until or name == NOTHING else f"{duration} so far",
        name,
        _why(row),
        row["actor"],
        str(row["generation"]),
    ]


def _why(row: Row) -> str:
    cause = CAUSES.get(row["cause"]) or str(row["cause"])
    if row["restored"] is not None:
        cause += f" to generation {row['restored']}"
    return f"{cause}: {row['reason']}" if row["reason"] else cause


@dataclass(frozen=True)
class Period:
    """A time in which one deployment or address served; `until` is None if it still serves."""

    name: str
    since: datetime
    until: datetime | None


def timeline(periods: Sequence[Period], console: Console, now: datetime) -> Table | None:
    """The periods, newest first, drawn to the width of the console: a line per name, a bar per period.

    A bar has at least one character. None if the console is too narrow or there are too few periods.
    """
    if console.width < MIN_TIMELINE_WIDTH or len(periods) < MIN_PERIODS:
        return None
    names = list(dict.fromkeys(period.name for period in periods))
    name_width = min(max(map(len, names)), console.width // NAME_FRACTION)
    bar_width = console.width - name_width - GAP
    begin, end = periods[-1].since, periods[0].until or now
    drawn = Table.grid(padding=(0, GAP, 0, 0))
    drawn.add_column(width=name_width, no_wrap=True, overflow="ellipsis")
    drawn.add_column(width=bar_width, no_wrap=True)
    drawn.add_row("", _axis(begin, None if periods[0].until is None else end, bar_width))
    block = ASCII_BLOCK if console.options.ascii_only else FULL_BLOCK
    for name in names:
        cells = [" "] * bar_width
        own = [period for period in periods if period.name == name]
        for period in own:
            first, last = _bar((period.since, period.until or now), (begin, end), bar_width)
            cells[first:last] = block * (last - first)
        serves = any(period.until is None for period in own)
        drawn.add_row(Text(plain(name)), Text("".join(cells), style="green" if serves else "cyan"))
    return drawn


def _bar(period: tuple[datetime, datetime], whole: tuple[datetime, datetime], width: int) -> tuple[int, int]:
    """The first character that a period covers and the one after its last: at least one character."""
    span = (whole[1] - whole[0]).total_seconds()
    if span <= 0:
        return 0, width
    first, last = ((time - whole[0]).total_seconds() / span * width for time in period)
    left = min(max(floor(first), 0), width - 1)
    return left, min(max(ceil(last), left + 1), width)


def _axis(begin: datetime, end: datetime | None, width: int) -> Text:
    """The first time on the left, the last time or `now` on the right, in the longest format that fits."""
    ends = (begin.astimezone(), end.astimezone() if end else None)
    for time_format in TIME_FORMATS:
        left, right = (f"{time:{time_format}}" if time else "now" for time in ends)
        if len(left) + len(right) < width:
            break
    return Text(left + right.rjust(width - len(left)), style="dim")
