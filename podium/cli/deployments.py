"""`podium deployments`: list the deployments of an agent; show, await or delete one."""

from datetime import timedelta
from typing import Annotated, Any

import typer

from podium.cli.command import (
    LIST,
    AgentArgument,
    CommandContext,
    DeploymentArgument,
    Limit,
    ListByDefault,
    Page,
    command,
    print_help_without_command,
)
from podium.cli.durations import parse_duration
from podium.cli.output import Column, age, details, local_time, role_of
from podium.cli.waiting import Goal, wait_for

COLUMNS = [
    Column("DEPLOYMENT", wraps=True),
    Column("STATUS"),
    Column("ROLE"),
    Column("AGE", drop_order=2),
    Column("IMAGE", min_width=20, drop_order=3),
    Column("ADDRESS", min_width=20, drop_order=4),
]
# 'podium history' shows all of them.
PERIODS_SHOWN = 3
# Metadata that has a line of its own.
_SHOWN_ELSEWHERE = {"deployment_id", "docker_image", "rpc_path", "health_path", "error_style"}

deployments = typer.Typer(
    name="deployments",
    cls=ListByDefault,
    help="List an agent's deployments; show, await or delete one.",
    invoke_without_command=True,
    subcommand_metavar="[list] AGENT | show ID | wait ID | delete ID",
)
deployments.callback()(print_help_without_command)


@deployments.command(LIST)
@command
async def list_deployments(context: CommandContext, agent: AgentArgument, limit: Limit = 50, page: Page = 1) -> None:
    """List the deployments of an agent, newest first."""
    async with context.output.progress("Reading deployments"):
        owner = await context.api.agent(agent)
        rows = await context.api.get(f"/agents/{owner['id']}/deployments", limit=limit, page_number=page)
    context.output.rows(rows, [row["id"] for row in rows], COLUMNS, [_cells(row) for row in rows])
    if not rows:
        context.output.note(f"{owner['name']} has no deployments: announce a pod with a deployment id to create one.")
    context.output.note_next_page(rows, limit, page)


@deployments.command()
@command
async def show(context: CommandContext, deployment: DeploymentArgument) -> None:
    """Show one deployment."""
    async with context.output.progress("Reading the deployment"):
        found = await context.api.deployment(deployment)
        agent = await context.api.get(f"/agents/{found['agent_id']}")
    context.output.item(found, found["id"], details(_details(found, agent["name"])))


@deployments.command()
@command
async def wait(
    context: CommandContext,
    deployment: DeploymentArgument,
    goal: Annotated[
        str, typer.Option("--for", metavar="STATE", help="State to wait for: ready, production, failed or deleted.")
    ] = "ready",
    timeout: Annotated[  # noqa: ASYNC109 - an option of the command
        timedelta, typer.Option(parser=parse_duration, metavar="DURATION", help="Maximum time to wait.")
    ] = "10m",  # type: ignore[assignment]  # Typer parses it
) -> None:
    """Wait until a deployment has reached a state.

    The deployment need not exist yet.
    """
    try:
        state = Goal(goal.lower())
    except ValueError:
        raise typer.BadParameter(f"{goal!r} is not one of {', '.join(Goal)}.", param_hint="--for") from None
    found = await wait_for(context, deployment, state, timeout)
    context.output.item(found, found["id"], f"{found['id']} is {state}.")


@deployments.command()
@command
async def delete(
    context: CommandContext,
    deployment: DeploymentArgument,
    *,
    force: Annotated[bool, typer.Option("--force", help="Also if conversations with it are open.")] = False,
) -> None:
    """Delete a preview. Production cannot be deleted."""
    async with context.output.progress("Deleting the deployment"):
        found = await context.api.deployment(deployment)
        path = f"/agents/{found['agent_id']}/deployments/{found['id']}{'?force=true' if force else ''}"
        response = await context.api.call("DELETE", path)
    context.output.item(response.body, found["id"], response.body["message"])


def _cells(deployment: dict[str, Any]) -> list[str]:
    return [
        deployment["id"],
        deployment["status"],
        role_of(deployment),
        age(deployment["created_at"]),
        deployment["docker_image"],
        deployment["acp_url"] or "-",
    ]


def _details(deployment: dict[str, Any], agent_name: str) -> list[tuple[str, str | None]]:
    metadata = deployment["registration_metadata"] or {}
    return [
        ("deployment", deployment["id"]),
        ("agent", agent_name),
        ("status", deployment["status"]),
        ("because", deployment["status_reason"]),
        ("role", role_of(deployment)),
        ("draining", _draining(deployment)),
        ("drained", local_time(deployment["drained_at"]) if deployment["drained_at"] else None),
        ("image", deployment["docker_image"]),
        ("address", deployment["acp_url"]),
        *(("instance", _instance(each)) for each in deployment["instances"] or () if each["instance_id"] is not None),
        ("rpc path", deployment["rpc_path"]),
        ("health path", deployment["health_path"]),
        *((f"fact {name}", str(value)) for name, value in metadata.items() if name not in _SHOWN_ELSEWHERE),
        ("created", local_time(deployment["created_at"])),
        ("announced", local_time(deployment["registered_at"])),
        ("ready", local_time(deployment["ready_at"])),
        *(("in production", _period(each)) for each in deployment["production_periods"][:PERIODS_SHOWN]),
        ("deleted", local_time(deployment["expires_at"]) if deployment["expires_at"] else None),
        ("purged", local_time(deployment["purged_at"]) if deployment["purged_at"] else None),
    ]


def _draining(deployment: dict[str, Any]) -> str | None:
    draining = deployment["draining"]
    if draining is None:
        return None
    until = f", until {local_time(draining['until'])} at the latest" if draining["until"] else ""
    return f"{draining['open_conversations']} conversations open{until}"


def _instance(instance: dict[str, Any]) -> str:
    because = f": {instance['status_reason']}" if instance["status_reason"] else ""
    return f"{instance['instance_id']} {instance['status']} at {instance['acp_url']}{because}"


def _period(period: dict[str, Any]) -> str:
    generation = f"(generation {period['generation']})"
    if period["until"] is None:
        return f"since {local_time(period['since'])} {generation}"
    return f"{local_time(period['since'])} to {local_time(period['until'])} {generation}"
