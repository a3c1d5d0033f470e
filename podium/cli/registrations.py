"""`podium registrations`: the outcomes of announcements."""

from typing import Annotated, Any

import typer

from podium.cli.command import AgentFilter, CommandContext, Limit, Page, command, one_agent
from podium.cli.output import Column, short_time

COLUMNS = [
    Column("RECEIVED"),
    Column("AGENT", min_width=12, drop_order=2, wraps=True),
    Column("DEPLOYMENT", min_width=12, drop_order=1, wraps=True),
    Column("OUTCOME"),
    Column("WHY", min_width=24, wraps=True),
]

# Shown for outcomes that the API returns without a reason.
REASONS = {
    "Registered": "applied",
    "Stale": "a newer announcement was applied before",
    "Shadowed": "address stored, but production keeps the traffic",
    "Departed": "the instance gets no further calls",
}


@command
async def registrations(
    context: CommandContext,
    named: AgentFilter = None,
    *,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Show only this agent; the agent need not exist.")
    ] = None,
    limit: Limit = 20,
    page: Page = 1,
) -> None:
    """Show outcomes of announcements: why is my pod not there?

    The newest announcement is first.
    """
    name_or_id = one_agent(named, agent)
    async with context.output.progress("Reading registrations"):
        rows = await _read(context, name_or_id, limit, page)
    ids = [row["message_id"] or row["parked_id"] for row in rows]
    columns = [column for column in COLUMNS if name_or_id is None or column.title != "AGENT"]
    context.output.rows(rows, ids, columns, [_cells(row, with_agent=name_or_id is None) for row in rows])
    if not rows and page == 1:
        context.output.note(_no_announcement(name_or_id))
    context.output.note_next_page(rows, limit, page)


async def _read(context: CommandContext, name_or_id: str | None, limit: int, page: int) -> list[dict[str, Any]]:
    from podium.cli.client import agent_segment, is_agent_id  # noqa: PLC0415 - --help starts faster without it

    rows: list[dict[str, Any]]
    if name_or_id is not None and is_agent_id(name_or_id):
        agent = await context.api.agent(name_or_id)
        rows = await context.api.get(f"/agents/{agent['id']}/registrations", limit=limit, page_number=page)
    else:
        name = agent_segment(name_or_id) if name_or_id is not None else None
        rows = await context.api.get("/registrations", agent=name, limit=limit, page_number=page)
    return rows


def _cells(row: dict[str, Any], *, with_agent: bool) -> list[str]:
    reason = row["reason"] or REASONS.get(row["outcome"], "")
    times = f" ({row['attempts']} times)" if row["attempts"] > 1 else ""
    agent = [row["agent_name"] or "-"] if with_agent else []
    return [short_time(row["received_at"]), *agent, row["deployment_id"] or "-", row["outcome"], reason + times]


def _no_announcement(name: str | None) -> str:
    if name is None:
        return (
            "No announcement has arrived: 'podium register' sends one, 'podium doctor' checks whether a registrar runs."
        )
    return (
        f"No announcement of {name!r} has arrived. Is its pod running, and does it publish to the exchange "
        f"podium.registrations with the routing key agent.{name}? 'podium doctor' checks whether a registrar runs."
    )
