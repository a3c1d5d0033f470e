"""`podium history`: what served an agent when, for how long, why, and by whom."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from podium.commands.calling import AgentArgument, Call, Limit, Page, command
from podium.commands.durations import parse_moment, short
from podium.commands.tables import Column
from podium.commands.wording import NOTHING, local, moment, served

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
    """Show what served when, for how long, why, and by whom."""
    async with call.screen.progress("Reading the ledger"):
        found = await call.api.agent(agent)
        rows, next_row = await _then(call, found["id"], at) if at else await _page(call, found["id"], limit, page)
    # What follows a row of the list is the row above it.
    ends = [next_row, *rows][: len(rows)]
    shown = [_row(row, end) for row, end in zip(rows, ends, strict=True)]
    call.screen.rows(rows, [served(row["to_deployment_id"], row["to_acp_url"]) for row in rows], COLUMNS, shown)
    if not rows:
        when = f"at {at:%Y-%m-%d %H:%M:%S}" if at else "yet" if page == 1 else "before that"
        call.screen.remark(f"Nothing served {found['name']} {when}.")
    if at is None and len(rows) == limit:
        call.screen.remark(f"There may be more: --page {page + 1}.")


async def _page(call: Call, agent_id: str, limit: int, page: int) -> tuple[list[Row], Row | None]:
    """The rows, newest first, and the one that ended the newest of them."""
    rows = await _ledger(call, agent_id, limit=limit, page_number=page)
    if page == 1 or not rows:
        return rows, None
    return rows, await _row_at(call, agent_id, rows[0]["generation"] + 1)


async def _then(call: Call, agent_id: str, at: datetime) -> tuple[list[Row], Row | None]:
    """The row that held at this moment, and the one that ended it."""
    rows = await _ledger(call, agent_id, at=at.astimezone(UTC).isoformat())
    return rows, await _row_at(call, agent_id, rows[0]["generation"] + 1) if rows else None


async def _row_at(call: Call, agent_id: str, generation: int) -> Row | None:
    """The row of this generation: the ledger has no gaps, so that it is found by counting back from the newest."""
    [newest] = await _ledger(call, agent_id, limit=1)
    back = newest["generation"] - generation
    if back < 0:
        return None
    found = await _ledger(call, agent_id, limit=1, page_number=back + 1)
    return next((row for row in found if row["generation"] == generation), None)


async def _ledger(call: Call, agent_id: str, **query: str | int) -> list[Row]:
    rows: list[Row] = await call.api.get(f"/agents/{agent_id}/promotions", **query)
    return rows


def _row(row: Row, end: Row | None) -> list[str]:
    since = moment(row["at"])
    until = moment(end["at"]) if end else datetime.now(UTC)
    assert since is not None  # every row of the ledger has its time
    assert until is not None
    serving = served(row["to_deployment_id"], row["to_acp_url"])
    return [
        local(row["at"]),
        short(until - since) + ("" if end or serving == NOTHING else " so far"),
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
