from typing import Any, Self, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.events.notifier import OutboxNotifier
from tests.support.waiting import eventually


class BrokenEngine:
    """An engine that fails with an unexpected error."""

    def __init__(self) -> None:
        self.attempts = 0

    def execution_options(self, **_: Any) -> Self:
        """Return itself."""
        return self

    def connect(self) -> None:
        """Always fails."""
        self.attempts += 1
        raise LookupError


@pytest.mark.parametrize("hints", [1, 3])
async def test_a_notifier_survives_failed_notifications(hints: int) -> None:
    """After any failure, the next notification is sent. The failure is silent, because the relay also polls."""
    engine = BrokenEngine()
    async with OutboxNotifier(cast("AsyncEngine", engine)) as notifier:
        for number in range(1, hints + 1):
            notifier.notify()

            async def tried(number: int = number) -> bool:
                return engine.attempts == number

            await eventually(tried, f"hint {number}")
