"""Being cancelled, and only seeming to be."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lost_as(error: Exception) -> Iterator[None]:
    """Raise this instead of a cancellation that nobody asked this task for.

    AMQP's client cancels whatever waits on a connection that it gives up, as after missed heartbeats: who takes that
    for the end of its own task ends for ever.
    """
    try:
        yield
    except asyncio.CancelledError as cancelled:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise error from cancelled
