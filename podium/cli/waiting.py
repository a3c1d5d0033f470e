"""Waiting until a deployment is what one wants it to be, by asking the API again and again."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import StrEnum

from podium.cli.calling import Call
from podium.cli.client import Json
from podium.cli.durations import short
from podium.cli.exits import ExitCode, Failure

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class Goal(StrEnum):
    """What one can wait for."""

    READY = "ready"
    PRODUCTION = "production"
    FAILED = "failed"
    DELETED = "deleted"


async def wait_for(call: Call, deployment_id: str, goal: Goal, timeout: timedelta) -> Json:  # noqa: ASYNC109 - the words that it fails with are ours
    """The deployment once it is that, also if no pod has announced it yet.

    Raises `Failure`: at once if it can be hoped for no more, else when the time is over.
    """
    seen: Json | None = None

    async def look() -> Json | None:
        nonlocal seen
        seen = await _known(call, deployment_id)
        return seen if seen is not None and _reached(seen, goal) else None

    found = await until(call, look, f"Waiting for {deployment_id} to be {goal}", timeout)
    if found is not None:
        return found
    state = f"it is {seen['status']}" if seen is not None else "no pod has announced it"
    advice = (
        "'podium registrations' says what became of its announcements"
        if goal is Goal.READY
        else f"'podium deployments show {deployment_id}' says more"
    )
    raise Failure(f"{deployment_id} was not {goal} within {short(timeout)}, {state}: {advice}.", ExitCode.TIMED_OUT)


async def until(
    call: Call,
    look: Callable[[], Awaitable[Json | None]],
    doing: str,
    timeout: timedelta,  # noqa: ASYNC109 - the caller says what it means that the time is over
) -> Json | None:
    """What `look` finds; None if it has found nothing when the time is over. It looks once at least."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout.total_seconds()
    pause = FIRST_PAUSE_SECONDS
    async with call.screen.progress(doing):
        while True:
            found = await _looked(look, last=loop.time() >= deadline)
            left = deadline - loop.time()
            if found is not None or left <= 0:
                return found
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def _looked(look: Callable[[], Awaitable[Json | None]], *, last: bool) -> Json | None:
    """What there is to see; an API that is away for a moment is no reason to give up."""
    try:
        return await look()
    except Failure as failure:
        if failure.code != ExitCode.UNAVAILABLE or last:
            raise
        return None


async def _known(call: Call, deployment_id: str) -> Json | None:
    try:
        return await call.api.deployment(deployment_id)
    except Failure as failure:
        if failure.code != ExitCode.NOT_FOUND:
            raise
        return None


def _reached(deployment: Json, goal: Goal) -> bool:
    """Whether it is that. Raises `Failure` if it will not be."""
    if deployment["expires_at"] is not None:
        if goal is Goal.DELETED:
            return True
        raise Failure(
            f"{deployment['id']} was deleted, and its id stays taken: deploy again under a new one.",
            ExitCode.NOT_FOUND,
        )
    if goal is Goal.PRODUCTION:
        return bool(deployment["is_production"])
    if goal is Goal.READY and deployment["status"] == "Failed":
        because = deployment["status_reason"] or "no reason is known"
        raise Failure(f"{deployment['id']} is Failed ({because}): see its pod's log, then deploy again.")
    return bool(deployment["status"].lower() == goal)
