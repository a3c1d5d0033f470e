"""`podium promote` and `podium rollback`: change what serves an agent, and report the change."""

import signal
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from podium.cli.command import AgentArgument, CommandContext, command
from podium.cli.durations import format_duration, parse_duration
from podium.cli.exits import ExitCode, Failure
from podium.cli.output import served_name, serving_name
from podium.cli.waiting import Goal, poll, wait_for
from podium.printable import plain

if TYPE_CHECKING:
    from podium.cli.client import Json, Response

# The largest page of the API.
DEPLOYMENTS_READ = 1000
# Other cutovers may follow before the ledger is read, so the row may not be the newest.
LEDGER_ROWS = 50

Wait = Annotated[
    timedelta | None,
    typer.Option(
        parser=parse_duration, metavar="DURATION", help="Wait up to this long for the deployment to be Ready."
    ),
]
To = Annotated[
    str | None,
    typer.Option(
        metavar="ID|legacy",
        help="Deployment to go back to, or 'legacy' for the address without versions. Default: what served before.",
    ),
]
Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Reason to store in the ledger.")]
IfGeneration = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Refuse unless the agent's generation is N (exit code 5)."),
]


@command
async def promote(
    context: CommandContext,
    agent: AgentArgument,
    deployment: Annotated[
        str | None,
        typer.Argument(
            metavar="DEPLOYMENT",
            help="Id of the deployment. Default: the newest Ready preview, after a question.",
            show_default=False,
        ),
    ] = None,
    *,
    wait: Wait = None,
    if_generation: IfGeneration = None,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Promote without a question.")] = False,
) -> None:
    """Put a deployment into production.

    The next call of the agent reaches it. Without DEPLOYMENT, the newest Ready preview is promoted, but never one that
    is older than production: to go back, name the deployment or use 'podium rollback'.
    """
    found = await context.api.agent(agent)
    if deployment is None:
        _require_answer(yes=yes)
        deployment = await _choose(context, found, wait or timedelta(0))
        if deployment is None:
            _report_unchanged(context, found)
            return
        # The user agrees to replace what served when the question was printed, and nothing else.
        if_generation = found["generation"] if if_generation is None else if_generation
        if not yes:
            _confirm(f"Promote {deployment} in place of {serving_name(found)}, which serves {found['name']} now?")
    elif wait is not None:
        await wait_for(context, deployment, Goal.READY, wait)
    async with context.output.progress(f"Promoting {deployment}"):
        path = f"/agents/{found['id']}/deployments/{_segment(deployment)}/promote"
        response = await context.api.change(path, {"reason": reason}, if_generation=if_generation)
        await _report(context, found, response, deployment)


@command
async def rollback(
    context: CommandContext,
    agent: AgentArgument,
    to: To = None,
    if_generation: IfGeneration = None,
    reason: Reason = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Go back even if the target does not answer a probe.")] = False,
) -> None:
    """Go back to what served before, if it answers a probe.

    Rolling back twice goes back twice. A rollback pauses automatic promotion until the next promote.
    """
    found = await context.api.agent(agent)
    async with context.output.progress("Rolling back"):
        body = {"to": to, "reason": reason, "force": force}
        response = await context.api.change(f"/agents/{found['id']}/rollback", body, if_generation=if_generation)
        await _report(context, found, response, to or "what served before")
    context.output.note("Automatic promotion is paused until the next promote.")


def newest_preview(deployments: list["Json"]) -> "Json | None":
    """The newest Ready preview of a list that is ordered newest first; None if there is none after production."""
    ready = (each for each in deployments if each["is_production"] or each["status"] == "Ready")
    newest = next(ready, None)
    return None if newest is None or newest["is_production"] else newest


async def _choose(context: CommandContext, agent: "Json", wait: timedelta) -> str | None:
    """The id of the newest Ready preview, after waiting for one if `wait` is not zero.

    None if production is newer than all Ready previews and `wait` is zero. Raises `Failure` if there is no preview to
    promote otherwise.
    """

    async def find() -> "Json | None":
        return newest_preview(await context.api.get(f"/agents/{agent['id']}/deployments", limit=DEPLOYMENTS_READ))

    found = await poll(context, find, f"Waiting for a Ready preview of {agent['name']}", wait)
    if found is not None:
        return str(found["id"])
    if agent["production_deployment_id"] is not None and not wait:
        return None
    raise _no_preview(agent, wait)


def _no_preview(agent: "Json", wait: timedelta) -> Failure:
    name = agent["name"]
    if wait:
        return Failure(
            f"No preview of {name} newer than production was Ready within {format_duration(wait)}: "
            f"'podium registrations --agent {name}' shows the outcome of announcements.",
            ExitCode.TIMED_OUT,
        )
    return Failure(
        f"{name} has no Ready preview: --wait 10m waits for one, 'podium deployments {name}' lists all deployments.",
        ExitCode.CONFLICT,
    )


async def _report(context: CommandContext, agent: "Json", response: "Response", requested: str) -> None:
    """Print what served before and what serves now, as the ledger has it.

    `agent` is its state before the change; `requested` names the new state if the ledger row is not found.
    """
    if response.generation == agent["generation"]:
        _report_unchanged(context, agent)
        return
    rows: list[Json] = await context.api.get(f"/agents/{agent['id']}/promotions", limit=LEDGER_ROWS)
    row = next((row for row in rows if row["generation"] == response.generation), None)
    now, before = requested, "unknown"
    if row is not None:
        now = served_name(row["to_deployment_id"], row["to_acp_url"])
        before = served_name(row["from_deployment_id"], row["from_acp_url"])
    summary = {
        **_summary(agent, changed=True),
        "generation": response.generation,
        "deployment_id": row["to_deployment_id"] if row else None,
        "acp_url": row["to_acp_url"] if row else None,
        "previous": _previous(row) if row else None,
    }
    sentence = f"{agent['name']}: {now} serves now, {before} served before (generation {response.generation})."
    context.output.item(summary, now, sentence)


def _report_unchanged(context: CommandContext, agent: "Json") -> None:
    serving = serving_name(agent)
    sentence = f"Nothing changed: {serving} already serves {agent['name']} (generation {agent['generation']})."
    context.output.item(_summary(agent, changed=False), serving, sentence)


def _summary(agent: "Json", *, changed: bool) -> dict[str, Any]:
    return {
        "agent": agent["name"],
        "agent_id": agent["id"],
        "changed": changed,
        "generation": agent["generation"],
        "deployment_id": agent["production_deployment_id"],
        "acp_url": agent["acp_url"],
        "previous": None,
    }


def _previous(row: "Json") -> "Json | None":
    if row["from_acp_url"] is None:
        return None
    return {"deployment_id": row["from_deployment_id"], "acp_url": row["from_acp_url"]}


def _segment(deployment_id: str) -> str:
    from podium.cli.client import deployment_segment  # noqa: PLC0415 - --help starts faster without it

    return deployment_segment(deployment_id)


def _require_answer(*, yes: bool) -> None:
    """Raise `typer.BadParameter` if a question is needed and stdin is not a terminal."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("name it, or pass --yes for the newest Ready preview.", param_hint="DEPLOYMENT")


def _confirm(question: str) -> None:
    # asyncio's own handler would report Ctrl-C only after the answer.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        agreed = typer.confirm(plain(question), err=True)
    finally:
        signal.signal(signal.SIGINT, before)
    if not agreed:
        raise Failure("Not promoted. Nothing has changed.")
