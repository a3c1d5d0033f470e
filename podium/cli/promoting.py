"""`podium promote` and `podium rollback`: what serves an agent changes, or it is said why it does not."""

import signal
import sys
from datetime import timedelta
from typing import Annotated

import typer

from podium.cli.calling import AgentArgument, Call, IfGeneration, Reason, command
from podium.cli.durations import parse_duration
from podium.cli.exits import Failure
from podium.cli.wording import serves

Wait = Annotated[
    timedelta | None,
    typer.Option(parser=parse_duration, metavar="DURATION", help="Wait so long for it to become Ready."),
]
To = Annotated[str | None, typer.Option(metavar="ID|legacy", help="Where to. Default: to what served before.")]


@command
async def promote(
    call: Call,
    agent: AgentArgument,
    deployment: Annotated[
        str | None,
        typer.Argument(
            metavar="DEPLOYMENT", help="Default: the newest Ready preview, after asking.", show_default=False
        ),
    ] = None,
    *,
    wait: Wait = None,
    if_generation: IfGeneration = None,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Put a deployment into production.

    The next call of the agent reaches it. Where none is named, it is the newest that is Ready, never one that is
    older than production: to go back, name it or roll back.
    """
    from podium.cli.choosing import choose  # noqa: PLC0415 - --help starts faster without it
    from podium.cli.cutover import report, report_unchanged  # noqa: PLC0415 - as above
    from podium.cli.waiting import Goal, wait_for  # noqa: PLC0415 - as above

    found = await call.api.agent(agent)
    if deployment is None:
        _require_answer(yes=yes)
        deployment = await choose(call, found, wait or timedelta(0))
        if deployment is None:
            report_unchanged(call, found)
            return
        # What was shown and agreed to is what is promoted, and from the state in which it was shown.
        if_generation = found["generation"] if if_generation is None else if_generation
        if not yes:
            _ask(f"Promote {deployment} in place of {serves(found)}, which serves {found['name']} now?")
    elif wait is not None:
        await wait_for(call, deployment, Goal.READY, wait)
    async with call.screen.progress(f"Promoting {deployment}"):
        path = f"/agents/{found['id']}/deployments/{_segment(deployment)}/promote"
        answer = await call.api.change(path, {"reason": reason}, if_generation=if_generation)
        await report(call, found, answer, deployment)


@command
async def rollback(
    call: Call,
    agent: AgentArgument,
    to: To = None,
    if_generation: IfGeneration = None,
    reason: Reason = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Go there even if it does not answer a probe.")] = False,
) -> None:
    """Go back to what served before, if it answers; twice goes back twice.

    Pauses automatic promotion, until somebody promotes.
    """
    from podium.cli.cutover import report  # noqa: PLC0415 - --help starts faster without it

    found = await call.api.agent(agent)
    async with call.screen.progress("Rolling back"):
        answer = await call.api.change(
            f"/agents/{found['id']}/rollback", {"to": to, "reason": reason, "force": force}, if_generation=if_generation
        )
        await report(call, found, answer, to or "what served before")
    call.screen.remark("Automatic promotion is paused until somebody promotes.")


def _segment(deployment_id: str) -> str:
    from podium.cli.segments import deployment_segment  # noqa: PLC0415 - --help starts faster without it

    return deployment_segment(deployment_id)


def _require_answer(*, yes: bool) -> None:
    """Refuse to choose for somebody who cannot be asked."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("name it, or say --yes to take the newest Ready preview.", param_hint="DEPLOYMENT")


def _ask(question: str) -> None:
    # While an event loop runs, Ctrl-C would be noticed after the answer only.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        agreed = typer.confirm(question, err=True)
    finally:
        signal.signal(signal.SIGINT, before)
    if not agreed:
        raise Failure("Not promoted; nothing was changed.")
