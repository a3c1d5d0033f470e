"""Waiting for a condition: polling with a deadline, instead of a fixed sleep."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import text

from services.storage.database import Sessions


async def eventually(happened: Callable[[], Awaitable[bool]], what: str, *, seconds: float = 20) -> None:
    """Return as soon as the condition is true; fail with `what` at the deadline."""
    try:
        async with asyncio.timeout(seconds):
            while not await happened():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"did not happen within {seconds} s: {what}") from None


async def eventually_rows(sessions: Sessions, query: str, count: int = 1, *, seconds: float = 20) -> list[Any]:
    """The rows of a query, as soon as there are this many."""
    found: list[Any] = []

    async def enough() -> bool:
        found[:] = await rows(sessions, query)
        return len(found) >= count

    await eventually(enough, f"{count} rows of: {query}", seconds=seconds)
    return found


async def rows(sessions: Sessions, query: str, **parameters: object) -> list[Any]:
    """The rows of a query now."""
    async with sessions() as session:
        return list(await session.execute(text(query), parameters))
