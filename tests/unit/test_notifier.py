from typing import Any, Self, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.events.notifier import OutboxNotifier
from tests.support.waiting import eventually


class Broken:
    """An engine that fails in a way nobody thought of."""

    def __init__(self) -> None:
        self.asked = 0

    def execution_options(self, **_: Any) -> Self:
        """Itself."""
        return self

    def connect(self) -> None:
        """Never."""
        self.asked += 1
        raise LookupError


@pytest.mark.parametrize("hints", [1, 3])
async def test_a_waker_outlives_every_hint_that_is_lost(hints: int) -> None:
    """Whatever went wrong with one, the next one is tried; nobody is told, since polling is the truth."""
    engine = Broken()
    async with OutboxNotifier(cast("AsyncEngine", engine)) as notifier:
        for number in range(1, hints + 1):
            notifier.notify()

            async def tried(number: int = number) -> bool:
                return engine.asked == number

            await eventually(tried, f"hint {number}")
