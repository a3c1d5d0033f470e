"""Background tasks, and telling a real cancellation from one that a library caused."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any


@asynccontextmanager
async def background_task(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` while inside; cancel it and wait for its end on exit.

    If `work` fails earlier, the body goes on, and asyncio logs the exception.
    """
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))


@contextmanager
def lost_as(error: Exception) -> Iterator[None]:
    """Raise `error` in place of a `CancelledError` if no caller cancelled the current task.

    The AMQP client cancels every task that waits on a connection it closes, for example after missed heartbeats.
    A worker that took this for its own cancellation would stop for good.
    """
    try:
        yield
    except asyncio.CancelledError as cancelled:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise error from cancelled
