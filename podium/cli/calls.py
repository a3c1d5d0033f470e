"""`podium calls`: calls and failures of an agent within the last hour."""

from typing import Any

from podium.cli.command import AgentArgument, CommandContext, command
from podium.cli.output import Column, local_time

COLUMNS = [
    Column("VERSION", min_width=16, wraps=True),
    Column("CALLS"),
    Column("AGENT FAILED"),
    Column("GATEWAY FAILED"),
    Column("MEAN", drop_order=1),
    Column("LONGEST", drop_order=2),
]
ALL = "all"
# The API has the same row for calls of the legacy address and for those that came while nothing served.
NO_VERSION = "legacy address or nothing"
BARS = "▁▂▃▄▅▆▇█"


@command
async def calls(context: CommandContext, agent: AgentArgument) -> None:
    """Show calls and failures of the last hour, by version.

    Times are those until the first byte of an answer. At a terminal, calls per minute are drawn above the table.
    """
    output = context.output
    async with output.progress("Reading the counts"):
        owner = await context.api.agent(agent)
        found = await context.api.get(f"/agents/{owner['id']}/calls")
    versions = found["deployments"]
    names = [each["deployment_id"] or NO_VERSION for each in versions]
    if output.as_json:
        output.json(found)
        return
    if output.out.is_terminal and versions and not output.quiet and not output.out.options.ascii_only:
        output.show(sparkline([minute["calls"] for minute in found["minutes"]]), "")
    rows = [_cells(name, each) for name, each in zip(names, versions, strict=True)]
    if len(rows) > 1:
        rows.append(_cells(ALL, found["total"]))
    output.rows(found, names, COLUMNS, rows)
    since = local_time(found["since"])
    output.note(f"Since {since}." if versions else f"{owner['name']} has had no calls since {since}.")
    if not found["is_complete"]:
        output.note("Some calls are missing: an API process had too many agents and versions to count.")


def sparkline(counts: list[int]) -> str:
    """A bar per number, the highest for the largest one; a blank for zero."""
    most = max(counts, default=0)
    return "".join(BARS[(count * len(BARS) - 1) // most] if count else " " for count in counts).rstrip()


def _cells(name: str, count: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{count['calls']:,}",
        f"{count['agent_failures']:,}",
        f"{count['gateway_failures']:,}",
        _seconds(count["mean_seconds"]),
        _seconds(count["longest_seconds"]),
    ]


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
