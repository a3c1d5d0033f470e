"""`podium registrations`: what became of announcements, which is why a pod is there or not."""

from typing import Annotated, Any

import typer

from podium.cli.calling import Call, Limit, Page, command
from podium.cli.tables import Column
from podium.cli.wording import clock

COLUMNS = [
    Column("RECEIVED"),
    Column("AGENT", least=12, leaves=2, folds=True),
    Column("DEPLOYMENT", least=12, leaves=1, folds=True),
    Column("OUTCOME"),
    Column("WHY", least=24, folds=True),
]

# What is recorded without a reason explains itself only to those who know the words.
MEANINGS = {
    "Registered": "applied",
    "Stale": "something newer was applied before",
    "Shadowed": "address noted, but production keeps the traffic",
}


@command
async def registrations(
    call: Call,
    named: Annotated[str | None, typer.Argument(metavar="AGENT", help="As --agent.", show_default=False)] = None,
    *,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Only those of this agent; its name need not exist yet.")
    ] = None,
    limit: Limit = 20,
    page: Page = 1,
) -> None:
    """Say what became of announcements: why is my pod not there?"""
    if named is not None and agent is not None and named != agent:
        raise typer.BadParameter("name one agent.", param_hint="--agent")
    wanted = agent or named
    async with call.screen.progress("Asking for registrations"):
        rows = await _rows(call, wanted, limit, page)
    ids = [row["message_id"] or row["parked_id"] for row in rows]
    columns = [each for each in COLUMNS if wanted is None or each.title != "AGENT"]
    call.screen.rows(rows, ids, columns, [_row(row, with_agent=wanted is None) for row in rows])
    if not rows and page == 1:
        call.screen.remark(_nothing(wanted))
    if len(rows) == limit:
        call.screen.remark(f"There may be more: --page {page + 1}.")


async def _rows(call: Call, wanted: str | None, limit: int, page: int) -> list[dict[str, Any]]:
    from podium.cli.segments import agent_segment, is_agent_id  # noqa: PLC0415 - --help starts faster without it

    rows: list[dict[str, Any]]
    if wanted is not None and is_agent_id(wanted):
        owner = await call.api.agent(wanted)
        rows = await call.api.get(f"/agents/{owner['id']}/registrations", limit=limit, page_number=page)
    else:
        name = agent_segment(wanted) if wanted is not None else None
        rows = await call.api.get("/registrations", agent=name, limit=limit, page_number=page)
    return rows


def _row(row: dict[str, Any], *, with_agent: bool) -> list[str]:
    why = row["reason"] or MEANINGS.get(row["outcome"], "")
    times = f" ({row['attempts']} times)" if row["attempts"] > 1 else ""
    named = [row["agent_name"] or "-"] if with_agent else []
    return [clock(row["received_at"]), *named, row["deployment_id"] or "-", row["outcome"], why + times]


def _nothing(wanted: str | None) -> str:
    if wanted is None:
        return (
            "No announcement has arrived: 'podium register' makes one, 'podium doctor' checks that somebody takes it."
        )
    return (
        f"No announcement of {wanted!r} has arrived: is its pod running, and does it publish to the exchange "
        f"podium.registrations under the key agent.{wanted}? 'podium doctor' checks that somebody takes it."
    )
