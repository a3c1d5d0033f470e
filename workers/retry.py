"""Waiting in a worker: until it is time, or until the process is told to stop, whichever comes first."""

import asyncio
import random
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from services.cancellation import lost_as

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0


async def pause(stop: asyncio.Event, seconds: float, *others: asyncio.Event) -> None:
    """Return after this time, or as soon as the process shall stop or one of the other events comes."""
    waiting = [asyncio.ensure_future(event.wait()) for event in (stop, *others)]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def backoff(attempt: int) -> float:
    """Seconds to wait after this many failures in a row: full jitter, so that processes do not come back all at once.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    ceiling = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(attempt, 10))
    return random.uniform(0, ceiling)  # noqa: S311 - jitter, not a secret


async def at_most(seconds: float, farewell: Awaitable[object]) -> None:
    """Take leave of a server, but do not wait for one that does not answer; how it ends is of no interest."""
    with suppress(Exception), lost_as(ConnectionError()):
        async with asyncio.timeout(seconds):
            await farewell


async def ended(task: "asyncio.Task[Any]", seconds: float) -> None:
    """Cancel a task and see it end, but wait no longer than this; how it ends is of no interest."""
    task.cancel()
    await asyncio.wait({task}, timeout=seconds)
    if task.done() and not task.cancelled():
        task.exception()
