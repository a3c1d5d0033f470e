"""Waiting for a deployment: repeated requests to the API until a condition holds or the time is over."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from podium.cli.command import CommandContext
from podium.cli.durations import format_duration
from podium.cli.exits import ExitCode, Failure

if TYPE_CHECKING:
    from podium.cli.client import Json

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class Goal(StrEnum):
    """The states that `podium deployments wait --for` accepts."""

    READY = "ready"
    PRODUCTION = "production"
    FAILED = "failed"
    DELETED = "deleted"


async def wait_for(context: CommandContext, deployment_id: str, goal: Goal, timeout: timedelta) -> "Json":  # noqa: ASYNC109 - the error message names the timeout
    """The deployment once it has reached the goal. It need not exist yet.

    Raises `Failure`: at once if the deployment cannot reach the goal any more, else when the time is over.
    """
    deployment: Json | None = None

    async def reached() -> "Json | None":
        nonlocal deployment
        deployment = await _find(context, deployment_id)
        return deployment if deployment is not None and _has_reached(deployment, goal) else None

    found = await poll(context, reached, f"Waiting for {deployment_id} to be {goal}", timeout)
    if found is not None:
        return found
    state = f"it is {deployment['status']}" if deployment is not None else "no pod has announced it"
    advice = (
        "'podium registrations' shows the outcome of its announcements"
        if goal is Goal.READY
        else f"'podium deployments show {deployment_id}' shows its details"
    )
    raise Failure(
        f"{deployment_id} was not {goal} within {format_duration(timeout)}, {state}: {advice}.", ExitCode.TIMED_OUT
    )


async def poll(
    context: CommandContext,
    check: Callable[[], Awaitable["Json | None"]],
    progress: str,
    timeout: timedelta,  # noqa: ASYNC109 - a timeout is a result here, not an error
) -> "Json | None":
    """The first result of `check` that is not None; None if the time is over. Runs `check` at least once.

    An API that cannot be reached is tried again until the time is over.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout.total_seconds()
    pause = FIRST_PAUSE_SECONDS
    async with context.output.progress(progress):
        while True:
            found = await _checked(check, last=loop.time() >= deadline)
            remaining = deadline - loop.time()
            if found is not None or remaining <= 0:
                return found
            await asyncio.sleep(min(pause, remaining))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def _checked(check: Callable[[], Awaitable["Json | None"]], *, last: bool) -> "Json | None":
    try:
        return await check()
    except Failure as failure:
        if failure.code != ExitCode.UNAVAILABLE or last:
            raise
        return None


async def _find(context: CommandContext, deployment_id: str) -> "Json | None":
    try:
        return await context.api.deployment(deployment_id)
    except Failure as failure:
        if failure.code != ExitCode.NOT_FOUND:
            raise
        return None


def _has_reached(deployment: "Json", goal: Goal) -> bool:
    """Whether the deployment has reached the goal. Raises `Failure` if it cannot reach it any more."""
    if deployment["expires_at"] is not None:
        if goal is Goal.DELETED:
            return True
        raise Failure(
            f"{deployment['id']} was deleted, and its id cannot be used again: deploy under a new id.",
            ExitCode.NOT_FOUND,
        )
    if goal is Goal.PRODUCTION:
        return bool(deployment["is_production"])
    if goal is Goal.READY and deployment["status"] == "Failed":
        reason = deployment["status_reason"] or "no reason is known"
        raise Failure(f"{deployment['id']} is Failed ({reason}): read the log of its pod, then deploy again.")
    return bool(deployment["status"].lower() == goal)
