"""A limit of requests without a valid key, per address: guessing gets slow, and costs the database nothing.

Kept in each process. Keys that the process knows are not affected, so callers behind the same address go on.
"""

from time import monotonic

from prometheus_client import CollectorRegistry, Counter

from services.errors import TooManyFailures
from services.settings import Settings

WINDOW_SECONDS = 60.0
# Of how many addresses one process remembers failures.
MOST_ADDRESSES = 10_000


class Failures:
    """The failed authentications of the last minute, by address."""

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        self._counted = Counter(
            "podium_auth_failures",
            "Requests with credentials of which none is valid: `refused`, or `limited` after too many of one address.",
            ["result"],
            registry=registry,
        )
        for result in ("refused", "limited"):
            self._counted.labels(result)
        self._most = settings.auth_failures_per_minute
        self._windows: dict[str, tuple[float, int]] = {}

    def check(self, address: str) -> None:
        """Raise `TooManyFailures` if the address has used up its failures."""
        began, count = self._windows.get(address, (0.0, 0))
        left = began + WINDOW_SECONDS - monotonic()
        if count >= self._most and left > 0:
            self._counted.labels("limited").inc()
            raise TooManyFailures(retry_after_seconds=int(left) + 1)

    def record(self, address: str) -> None:
        """Count one failure."""
        self._counted.labels("refused").inc()
        now = monotonic()
        began, count = self._windows.pop(address, (now, 0))
        if now - began >= WINDOW_SECONDS:
            began, count = now, 0
        self._windows[address] = (began, count + 1)
        if len(self._windows) > MOST_ADDRESSES:
            del self._windows[next(iter(self._windows))]
