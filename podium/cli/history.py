"""`podium history`: what served an agent when, for how long, why, and by whom."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from podium.cli.calling import AgentArgument, Call, Limit, Page, command
from podium.cli.durations import parse_moment, short
from podium.cli.screen import Screen
from podium.cli.tables import Column
from podium.cli.timeline import Stretch, timeline
from podium.cli.wording import NOTHING, local, moment, served

COLUMNS = [
    Column("SINCE"),
    Column("FOR"),
    Column("SERVED", least=18, folds=True),
    Column("WHY", least=16, folds=True),
    Column("BY", least=8, leaves=1),
    Column("GENERATION", leaves=2),
]

CAUSES = {
    "first": "the first to be Ready",
    "always": "promoted by itself",
    "manual": "promoted",
    "rollback": "rolled back",
    "legacy": "legacy address",
    "agent_deleted": "agent deleted",
}

Row = dict[str, Any]


@command
async def history(
    call: Call,
    agent: AgentArgument,
    at: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_moment, metavar="TIME", help="Only what served then: ISO 8601, or 15m for so long ago."
        ),
    ] = None,
    limit: Limit = 50,
    page: Page = 1,
) -> None:
    """Show what served when, for how long, why, and by whom; at a terminal with a line for each version."""
    async with call.screen.progress("Reading the ledger"):
        found = await call.api.agent(agent)
        query = {"at": at.astimezone(UTC).isoformat()} if at else {"limit": limit, "page_number": page}
        rows: list[Row] = await call.api.get(f"/agents/{found['id']}/promotions", **query)
    names = [served(row["to_deployment_id"], row["to_acp_url"]) for row in rows]
    if not (call.screen.as_json or call.screen.quiet):
        _draw(call.screen, rows, names)
    call.screen.rows(rows, names, COLUMNS, [_row(row) for row in rows])
    if not rows:
        when = "yet" if page == 1 else "before that"
        call.screen.remark(f"Nothing served {found['name']} {when}.")
    if at is None and len(rows) == limit:
        call.screen.remark(f"There may be more: --page {page + 1}.")


def _draw(screen: Screen, rows: list[Row], names: list[str]) -> None:
    """Draw the rows where a person looks at them."""
    if not screen.out.is_terminal:
        return
    ends = [(datetime.fromisoformat(row["at"]), moment(row["until"])) for row in rows]
    stretches = [Stretch(name, *end) for name, end in zip(names, ends, strict=True) if name != NOTHING]
    drawn = timeline(stretches, screen.out, datetime.now(UTC))
    if drawn is not None:
        screen.show(drawn, "")


def _row(row: Row) -> list[str]:
    until = moment(row["until"])
    serving = served(row["to_deployment_id"], row["to_acp_url"])
    return [
        local(row["at"]),
        short((until or datetime.now(UTC)) - datetime.fromisoformat(row["at"]))
        + ("" if until or serving == NOTHING else " so far"),
        serving,
        _why(row),
        row["actor"],
        str(row["generation"]),
    ]


def _why(row: Row) -> str:
    cause = CAUSES.get(row["cause"]) or str(row["cause"])
    if row["restored"] is not None:
        cause += f" to generation {row['restored']}"
    return f"{cause}: {row['reason']}" if row["reason"] else cause
