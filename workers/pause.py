"""Waiting in a worker: until it is time, or until the process is told to stop, whichever comes first."""

import asyncio
import random

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
    """Seconds to wait after this many failures in a row: random, so that processes do not come back all at once."""
    ceiling = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(attempt, 10))
    return random.uniform(ceiling / 4, ceiling)  # noqa: S311 - jitter, not a secret
