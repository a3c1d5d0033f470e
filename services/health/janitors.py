"""The janitors that run: each one reports itself every few seconds, and whether it trusts its own probes."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

REPORT_EVERY = timedelta(seconds=5)
# A janitor that has not reported for longer than this is not asked for its opinion.
JANITOR_ALIVE = 3 * REPORT_EVERY
# A janitor that ended without notice is forgotten after this.
FORGOTTEN_AFTER = timedelta(hours=1)

_REPORT = text("""
INSERT INTO janitors AS j (id, name, panic_since, probed, failing, unknown, unknown_reason)
VALUES (:id, :name, CAST(:panic_since AS timestamptz), :probed, :failing, :unknown, :unknown_reason)
ON CONFLICT (id) DO UPDATE
SET seen_at = clock_timestamp(), panic_since = excluded.panic_since, probed = excluded.probed,
    failing = excluded.failing, unknown = excluded.unknown, unknown_reason = excluded.unknown_reason
""")
_FORGET = text("""
DELETE FROM janitors WHERE id IN (
    SELECT id FROM janitors WHERE seen_at < clock_timestamp() - CAST(:after AS interval) FOR UPDATE SKIP LOCKED)
""")
_RETIRE = text("DELETE FROM janitors WHERE id = :id")
_ALIVE = text("""
SELECT id, name, panic_since, probed, failing, unknown, unknown_reason FROM janitors
WHERE seen_at > clock_timestamp() - CAST(:alive AS interval) ORDER BY started_at, id
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class JanitorReport:
    """What a janitor says about its probes within the panic window."""

    id: UUID
    name: str
    panic_since: datetime | None
    probed: int
    """Ready deployments whose last probe it could make."""
    failing: int
    """Those of them whose last probe failed."""
    unknown: int
    """Deployments whose last probe it could not make."""
    unknown_reason: str | None

    @property
    def in_panic(self) -> str | None:
        """A sentence if it is in panic."""
        if self.panic_since is None:
            return None
        return (
            f"janitor {self.name} sets no deployment Failed since {self.panic_since.isoformat(timespec='seconds')}: "
            f"its probes of {self.failing} of {self.probed} deployments fail"
        )


async def report_janitor(session: AsyncSession, report: JanitorReport) -> None:
    """Store what a janitor says, and forget those that ended; others see it once the transaction is committed."""
    await session.execute(
        _REPORT,
        {
            "id": report.id,
            "name": report.name,
            "panic_since": report.panic_since,
            "probed": report.probed,
            "failing": report.failing,
            "unknown": report.unknown,
            "unknown_reason": report.unknown_reason,
        },
    )
    await session.execute(_FORGET, {"after": FORGOTTEN_AFTER})


async def retire_janitor(session: AsyncSession, janitor_id: UUID) -> None:
    """Remove a janitor that stops; others see it once the transaction is committed."""
    await session.execute(_RETIRE, {"id": janitor_id})


async def living_janitors(session: AsyncSession | AsyncConnection) -> list[JanitorReport]:
    """The last reports of the janitors that run now, the oldest janitor first."""
    return [JanitorReport(**row._asdict()) for row in await session.execute(_ALIVE, {"alive": JANITOR_ALIVE})]
