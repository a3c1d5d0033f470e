"""What a worker says while a server is away: which one, since when, and that it is back."""

from datetime import UTC, datetime
from time import monotonic

import structlog
from aio_pika.exceptions import AMQPError

from workers.retry import backoff

BROKER = "RabbitMQ"
DATABASE = "PostgreSQL"

log = structlog.get_logger(__name__)


class Outage:
    """The failures in a row of one worker; over as soon as it works again."""

    def __init__(self, *, action: str, back: str) -> None:
        """The `action` of what is logged while it lasts, and when it is over."""
        self._away = action
        self._back = back
        self._attempts = 0
        self._began = 0.0
        self._since = ""

    def failed(self, error: BaseException, *, hint: str | None = None) -> float:
        """Say what is away and since when; seconds until the next attempt: random, at most five."""
        if not self._attempts:
            self._began = monotonic()
            self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._attempts += 1
        cause = _cause(error)
        log.warning(
            "A server cannot be used; trying again.",
            action=self._away,
            server=BROKER if isinstance(cause, AMQPError) else DATABASE,
            since=self._since,
            attempt=self._attempts,
            error=f"{type(cause).__name__}: {cause}"[:300],
            **({"hint": hint} if hint else {}),
        )
        return backoff(self._attempts)

    def over(self) -> None:
        """Say that it is over, if there was one."""
        if self._attempts:
            log.warning(
                "What was away can be used again.",
                action=self._back,
                away_seconds=round(monotonic() - self._began, 1),
            )
        self._attempts = 0


def _cause(error: BaseException) -> BaseException:
    """The first of several errors that came together."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
