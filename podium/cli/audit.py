"""`podium audit`: who changed what, beyond promotions."""

from typing import Annotated, Any

import typer
from pydantic_core import to_json

from podium.cli.command import CommandContext, Limit, command
from podium.cli.output import Column, short_time

COLUMNS = [
    Column("AT"),
    Column("BY", min_width=12, wraps=True),
    Column("ACTION"),
    Column("SUBJECT", min_width=12, wraps=True),
    Column("AGENT", drop_order=2, wraps=True),
    Column("FOR", drop_order=3, wraps=True),
    Column("DETAILS", min_width=16, drop_order=1, wraps=True),
]


@command
async def audit(
    context: CommandContext,
    *,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Show only this agent; the agent need not exist.")
    ] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="ACTOR", help="Show only changes by, say, key:ci-deploy.")
    ] = None,
    action: Annotated[str | None, typer.Option(metavar="ACTION", help="Show only, say, key.revoked.")] = None,
    before: Annotated[int | None, typer.Option(min=1, metavar="ID", help="Show only entries before this one.")] = None,
    limit: Limit = 50,
) -> None:
    """List changes of keys, settings, deployments and parked messages, newest first.

    'podium history' lists what served.
    """
    from podium.cli.client import agent_segment  # noqa: PLC0415 - --help starts faster without it

    name = agent_segment(agent) if agent is not None else None
    async with context.output.progress("Reading the audit log"):
        rows = await context.api.get("/audit", agent=name, actor=actor, action=action, limit=limit, before=before)
    context.output.rows(rows, [str(row["id"]) for row in rows], COLUMNS, [_cells(row) for row in rows])
    if not rows and before is None:
        context.output.note("The audit log is empty.")
    elif len(rows) == limit:
        context.output.note(f"Older entries: --before {rows[-1]['id']}")


def _cells(entry: dict[str, Any]) -> list[str]:
    return [
        short_time(entry["at"]),
        entry["actor"],
        entry["action"],
        entry["subject"],
        entry["agent_name"] or "-",
        entry["on_behalf_of"] or "-",
        to_json(entry["details"]).decode() if entry["details"] else "-",
    ]
