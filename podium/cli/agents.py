"""`podium agents`: which there are, what serves one of them, and what happens to it by itself."""

from typing import Annotated, Any

import typer

from podium.cli.calling import Call, Limit, Page, command
from podium.cli.deployments import LIST, ListsByDefault
from podium.cli.policy import probing, set_policy
from podium.cli.tables import Column, facts
from podium.cli.wording import age, local, serves

COLUMNS = [
    Column("AGENT", folds=True),
    Column("STATUS"),
    Column("SERVES", least=36, folds=True),
    Column("GENERATION", leaves=2),
    Column("AGE", leaves=1),
    Column("DESCRIPTION", least=20, leaves=3),
]


class ListsAtOnce(ListsByDefault):
    """`podium agents` is `podium agents list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer keeps this type to itself
        """Say `list` where nothing is named at all."""
        return super().parse_args(ctx, args or [LIST])


agents = typer.Typer(
    name="agents",
    cls=ListsAtOnce,
    help="List agents, show one of them, or set what happens to it by itself.",
    subcommand_metavar="[list] [AGENT] | set AGENT",
)


@command
async def list_agents(
    call: Call,
    agent: Annotated[
        str | None, typer.Argument(metavar="AGENT", help="Show this one, by name or id.", show_default=False)
    ] = None,
    limit: Limit = 50,
    page: Page = 1,
) -> None:
    """List agents, newest first, or show one of them."""
    if agent is not None:
        await _show(call, agent)
        return
    async with call.screen.progress("Asking for agents"):
        found = await call.api.get("/agents", limit=limit, page_number=page)
    call.screen.rows(found, [each["name"] for each in found], COLUMNS, [_row(each) for each in found])
    if not found:
        call.screen.remark(
            "There are no agents yet: 'podium register' announces one." if page == 1 else "No more agents."
        )
    if len(found) == limit:
        call.screen.remark(f"There may be more: --page {page + 1}.")


async def _show(call: Call, name_or_id: str) -> None:
    async with call.screen.progress("Asking for the agent"):
        agent = await call.api.agent(name_or_id)
    show_agent(call, agent)


def show_agent(call: Call, agent: dict[str, Any]) -> None:
    """All about one agent."""
    call.screen.one(agent, agent["name"], facts(_facts(agent)))


agents.command(LIST)(list_agents)
agents.command("set")(set_policy)


def _row(agent: dict[str, Any]) -> list[str]:
    return [
        agent["name"],
        agent["status"],
        serves(agent),
        str(agent["generation"]),
        age(agent["created_at"]),
        agent["description"],
    ]


def _facts(agent: dict[str, Any]) -> list[tuple[str, str]]:
    paused = ", paused until somebody promotes" if agent["auto_promote_paused"] else ""
    pairs = [
        ("agent", agent["name"]),
        ("id", agent["id"]),
        ("status", agent["status"]),
        ("because", agent["status_reason"]),
        ("serves", serves(agent)),
        ("address", agent["acp_url"]),
        ("generation", str(agent["generation"])),
        ("auto-promote", f"{agent['auto_promote']}{paused}"),
        ("on failure", agent["on_failure"]),
        ("probes", probing(agent)),
        ("type", agent["acp_type"]),
        ("image", agent["docker_image"]),
        ("description", agent["description"]),
        ("created", local(agent["created_at"])),
        ("deleted", local(agent["deleted_at"]) if agent["deleted_at"] else None),
    ]
    return [(name, value) for name, value in pairs if value]
