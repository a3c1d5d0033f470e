"""`podium drain`: the conversations that are left with a deployment that has stopped serving."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from podium.cli.command import CommandContext, command
from podium.cli.durations import format_duration, parse_duration
from podium.cli.exits import ExitCode, Failure
from podium.cli.output import local_time
from podium.cli.waiting import poll

if TYPE_CHECKING:
    from podium.cli.client import Json


@command
async def drain(
    context: CommandContext,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Name or id of the agent.", show_default=False)],
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Id of the deployment.", show_default=False)],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until no conversation is left.")] = False,
    timeout: Annotated[  # noqa: ASYNC109 - an option of the command
        timedelta, typer.Option(parser=parse_duration, metavar="DURATION", help="Maximum time to wait.")
    ] = "1h",  # type: ignore[assignment]  # Typer parses it
) -> None:
    """Show whether conversations are left with a deployment that has stopped serving, or wait until none is.

    After that, its pods can be stopped. Calls without a conversation that are in flight are not counted: let the pods
    answer them before they exit.
    """
    async with context.output.progress("Reading the deployment"):
        owner = await context.api.agent(agent)
        path = f"/agents/{owner['id']}/deployments/{deployment}"
        found = await context.api.get(path)
    if found["is_production"]:
        raise Failure(
            f"{deployment} serves {owner['name']}: promote another deployment first, then drain it.", ExitCode.CONFLICT
        )
    if wait and found["draining"] is not None:
        found = await _drained(context, path, deployment, timeout)
    context.output.item(found, deployment, _state(found))


async def _drained(context: CommandContext, path: str, deployment: str, timeout: timedelta) -> "Json":  # noqa: ASYNC109 - the error message names the timeout
    """The deployment once it is drained. Raises `Failure` if it serves again, or when the time is over."""
    latest: Json = {}

    async def drained() -> "Json | None":
        nonlocal latest
        latest = await context.api.get(path)
        if latest["is_production"]:
            raise Failure(f"{deployment} was promoted meanwhile: it serves again.", ExitCode.CONFLICT)
        return latest if latest["draining"] is None else None

    found = await poll(context, drained, f"Waiting for the conversations of {deployment} to end", timeout)
    if found is not None:
        return found
    raise Failure(f"{_state(latest)} They did not end within {format_duration(timeout)}.", ExitCode.TIMED_OUT)


def _state(deployment: "Json") -> str:
    draining = deployment["draining"]
    if draining is not None:
        until = f", until {local_time(draining['until'])} at the latest" if draining["until"] else ""
        return f"{deployment['id']} is draining: {draining['open_conversations']} conversations are open{until}."
    if deployment["drained_at"] is not None:
        return f"{deployment['id']} is drained since {local_time(deployment['drained_at'])}: its pods can be stopped."
    return f"{deployment['id']} has no conversations to drain: it has not served."
