"""When each key was last used: remembered per process, and stored once a minute, apart from the requests."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.cancellation import background_task
from services.storage.database import Sessions, in_transaction

STORE_EVERY = timedelta(seconds=60)

_STORE = text("""
UPDATE keys AS k SET last_used_at = greatest(k.last_used_at, used.at)
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS used(id uuid, at timestamptz)
WHERE k.id = used.id
""")


class LastUsed:
    """The keys that were used since the last write."""

    def __init__(self) -> None:
        self._used: dict[UUID, datetime] = {}

    def record(self, key_id: UUID) -> None:
        """Remember that this key is used now."""
        self._used[key_id] = datetime.now(UTC)

    def take(self) -> dict[UUID, datetime]:
        """When each key was used; forgets them."""
        used, self._used = self._used, {}
        return used


@asynccontextmanager
async def open_last_used(sessions: Sessions, *, every: timedelta = STORE_EVERY) -> AsyncGenerator[LastUsed, None]:
    """Remembers used keys, and stores them until the end of the context and once more then."""
    last_used = LastUsed()

    async def store() -> None:
        used = last_used.take()
        if used:
            with suppress(Exception):  # the requests themselves show that the database is unavailable
                await in_transaction(sessions, lambda session: store_used(session, used))

    async def store_repeatedly() -> None:
        while True:
            await asyncio.sleep(every.total_seconds())
            await store()

    async with background_task(store_repeatedly(), name="last use of keys"):
        yield last_used
    await store()


async def store_used(session: AsyncSession, used: dict[UUID, datetime]) -> None:
    """Store these times; others see them once the transaction is committed."""
    rows = [{"id": str(key_id), "at": at.isoformat()} for key_id, at in sorted(used.items())]
    await session.execute(_STORE, {"rows": to_json(rows).decode()})
