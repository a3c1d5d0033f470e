"""`podium deployments`: the versions of an agent; one of them; waiting for one; deleting one."""

from datetime import timedelta
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from podium.cli.calling import AgentArgument, Call, DeploymentArgument, Limit, Page, command
from podium.cli.durations import parse_duration
from podium.cli.tables import Column, facts
from podium.cli.wording import age, local, role

LIST = "list"

COLUMNS = [
    Column("DEPLOYMENT", folds=True),
    Column("STATUS"),
    Column("ROLE"),
    Column("AGE", leaves=2),
    Column("IMAGE", least=20, leaves=3),
    Column("ADDRESS", least=20, leaves=4),
]


class ListsByDefault(TyperGroup):
    """`podium deployments bot` is `podium deployments list bot`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer keeps this type to itself
        """Say `list` where no command is named."""
        if args and args[0] not in {*self.commands, "--help"}:
            args = [LIST, *args]
        return super().parse_args(ctx, args)


deployments = typer.Typer(
    name="deployments",
    cls=ListsByDefault,
    help="List an agent's deployments, or show, await or delete one.",
    invoke_without_command=True,
    subcommand_metavar="[list] AGENT | show ID | wait ID | delete ID",
)


@deployments.callback()
def _no_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@command
async def list_deployments(call: Call, agent: AgentArgument, limit: Limit = 50, page: Page = 1) -> None:
    """List an agent's deployments, newest first."""
    async with call.screen.progress("Asking for deployments"):
        owner = await call.api.agent(agent)
        found = await call.api.get(f"/agents/{owner['id']}/deployments", limit=limit, page_number=page)
    call.screen.rows(found, [each["id"] for each in found], COLUMNS, [_row(each) for each in found])
    if not found:
        call.screen.remark(f"{owner['name']} has no deployments: a pod that announces a deployment id makes one.")
    if len(found) == limit:
        call.screen.remark(f"There may be more: --page {page + 1}.")


@command
async def show(call: Call, deployment: DeploymentArgument) -> None:
    """Show one deployment."""
    async with call.screen.progress("Asking for the deployment"):
        found = await call.api.deployment(deployment)
        agent = await call.api.get(f"/agents/{found['agent_id']}")
    call.screen.one(found, found["id"], facts(_facts(found, agent["name"])))


@command
async def wait(
    call: Call,
    deployment: DeploymentArgument,
    goal: Annotated[
        str, typer.Option("--for", metavar="STATE", help="ready, production, failed or deleted.")
    ] = "ready",
    timeout: Annotated[  # noqa: ASYNC109 - an option of the command
        timedelta, typer.Option(parser=parse_duration, metavar="DURATION", help="How long, at most.")
    ] = "10m",  # type: ignore[assignment]  # Typer parses it
) -> None:
    """Wait until a deployment is ready, announced yet or not."""
    from podium.cli.waiting import Goal, wait_for  # noqa: PLC0415 - --help starts faster without it

    try:
        wanted = Goal(goal.lower())
    except ValueError:
        raise typer.BadParameter(f"{goal!r} is none of {', '.join(Goal)}.", param_hint="--for") from None
    found = await wait_for(call, deployment, wanted, timeout)
    call.screen.one(found, found["id"], f"{found['id']} is {wanted}.")


@command
async def delete(call: Call, deployment: DeploymentArgument) -> None:
    """Delete a preview; production cannot be deleted."""
    async with call.screen.progress("Deleting"):
        found = await call.api.deployment(deployment)
        answer = await call.api.call("DELETE", f"/agents/{found['agent_id']}/deployments/{found['id']}")
    call.screen.one(answer.body, found["id"], answer.body["message"])


# The last few; 'podium history' tells all.
PERIODS_SHOWN = 3

deployments.command(LIST)(list_deployments)
deployments.command()(show)
deployments.command()(wait)
deployments.command()(delete)


def _row(deployment: dict[str, Any]) -> list[str]:
    return [
        deployment["id"],
        deployment["status"],
        role(deployment),
        age(deployment["created_at"]),
        deployment["docker_image"],
        deployment["acp_url"] or "-",
    ]


def _facts(deployment: dict[str, Any], agent_name: str) -> list[tuple[str, str]]:
    metadata = deployment["registration_metadata"] or {}
    known = {"deployment_id", "docker_image", "rpc_path", "health_path", "error_style"}
    pairs = [
        ("deployment", deployment["id"]),
        ("agent", agent_name),
        ("status", deployment["status"]),
        ("because", deployment["status_reason"]),
        ("role", role(deployment)),
        ("image", deployment["docker_image"]),
        ("address", deployment["acp_url"]),
        ("rpc path", deployment["rpc_path"]),
        ("health path", deployment["health_path"]),
        *((name, str(value)) for name, value in metadata.items() if name not in known),
        ("created", local(deployment["created_at"])),
        ("announced", local(deployment["registered_at"])),
        ("ready", local(deployment["ready_at"])),
        *(("in production", _period(each)) for each in deployment["production_periods"][:PERIODS_SHOWN]),
        ("deleted", local(deployment["expires_at"]) if deployment["expires_at"] else None),
        ("purged", local(deployment["purged_at"]) if deployment["purged_at"] else None),
    ]
    return [(name, value) for name, value in pairs if value]


def _period(period: dict[str, Any]) -> str:
    """A time in production: from when to when, or since when."""
    if period["until"] is None:
        return f"since {local(period['since'])} (generation {period['generation']})"
    return f"{local(period['since'])} to {local(period['until'])} (generation {period['generation']})"
