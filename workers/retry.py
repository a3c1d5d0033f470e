"""What a worker does while a server is unavailable: wait, log the outage, and try again until it works or must stop."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal

import structlog
from aio_pika.exceptions import AMQPConnectionError, AMQPError

from services.cancellation import lost_as
from services.tls import certificate_problem

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0
CONNECTION_LOST = "The connection to the broker was lost."
BROKER = "RabbitMQ"
DATABASE = "PostgreSQL"

log = structlog.get_logger(__name__)


class Outage:
    """Logs consecutive failures of one worker, and the recovery after them."""

    def __init__(self, *, failure_action: str, recovery_action: str) -> None:
        """The `action` of the log line for each failure, and for the recovery."""
        self._failure_action = failure_action
        self._recovery_action = recovery_action
        self._attempts = 0
        self._has_worked = False
        self._began = 0.0
        self._since = ""

    @property
    def state(self) -> Literal["starting", "working", "retrying"]:
        """Whether the worker waits for a server, or has worked since its last failure."""
        if self._attempts:
            return "retrying"
        return "working" if self._has_worked else "starting"

    def failed(self, error: BaseException, *, hint: str | None = None) -> float:
        """Log which server is unavailable and since when; returns the seconds to wait before the next attempt.

        The wait is random, and at most `LONGEST_BACKOFF_SECONDS`.
        """
        if not self._attempts:
            self._began = monotonic()
            self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._attempts += 1
        cause = _cause(error)
        log.warning(
            "A server is unavailable; retrying.",
            action=self._failure_action,
            server=BROKER if isinstance(cause, AMQPError) else DATABASE,
            since=self._since,
            attempt=self._attempts,
            error=f"{type(cause).__name__}: {cause}"[:300],
            **({"hint": hint} if hint else {}),
            **({"certificate": problem} if (problem := certificate_problem(cause)) else {}),
        )
        return backoff(self._attempts)

    def over(self) -> None:
        """Log the recovery if there were failures, and count the next failure as the first."""
        if self._attempts:
            log.warning(
                "The server is available again.",
                action=self._recovery_action,
                away_seconds=round(monotonic() - self._began, 1),
            )
        self._attempts = 0
        self._has_worked = True


async def run_with_retries(
    stop: asyncio.Event,
    work: Callable[[asyncio.Event], Awaitable[None]],
    outage: Outage,
    *,
    hint: str | None = None,
) -> None:
    """Call `work(stop)` until `stop` is set; after an exception, log it and wait before the next call.

    `work` calls `outage.over()` once it can use its servers. It must be safe to repeat after any exception.
    """
    while not stop.is_set():
        try:
            with lost_as(AMQPConnectionError(CONNECTION_LOST)):
                await work(stop)
        except Exception as error:  # noqa: BLE001 - no error may end a worker, and `work` is safe to repeat
            await pause(stop, outage.failed(error, hint=hint))


async def pause(stop: asyncio.Event, seconds: float, *others: asyncio.Event) -> None:
    """Wait for this many seconds; return earlier if `stop` or one of the other events is set."""
    waiters = [asyncio.ensure_future(event.wait()) for event in (stop, *others)]
    try:
        await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()


def backoff(attempt: int) -> float:
    """Seconds to wait after this many failures in a row: full jitter, so that processes do not retry all at once.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    ceiling = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(attempt, 10))
    return random.uniform(0, ceiling)  # noqa: S311 - jitter, not a secret


async def at_most(seconds: float, closing: Awaitable[object]) -> None:
    """Await the closing of a connection for at most this many seconds; errors are ignored."""
    with suppress(Exception), lost_as(ConnectionError()):
        async with asyncio.timeout(seconds):
            await closing


async def ended(task: "asyncio.Task[Any]", seconds: float) -> None:
    """Cancel a task and wait for its end, for at most this many seconds; its result and its error are ignored."""
    task.cancel()
    await asyncio.wait({task}, timeout=seconds)
    if task.done() and not task.cancelled():
        task.exception()


def _cause(error: BaseException) -> BaseException:
    """The error; the first one of an exception group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
