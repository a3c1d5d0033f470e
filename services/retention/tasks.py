"""Keeping the tables bounded: one short transaction after another removes what is past its retention.

Each kind of thing is one chore. Of all processes one at a time is at a chore, and none waits for another.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.events.log import remove_published
from services.registration.inbox import remove_decided
from services.registration.parked import remove_parked
from services.retention.versions import START, Cursor, Limits, Step, delete_old_previews, purge_deleted
from services.routing.sessions import remove_unseen
from services.settings import Settings

# Any number beside those of the relay and of migrations; the chore's own is the other half of the lock's key.
_LOCKS = 0x7377_6570
# Each may be another agent's, whose promotes wait until the transaction ends.
VERSIONS_AT_A_TIME = 100
_BEGIN = text(
    "SELECT pg_try_advisory_xact_lock(CAST(:locks AS int), CAST(:chore AS int)) AS ours, clock_timestamp() AS now"
)


class RetentionTask(IntEnum):
    """What there is to remove; the numbers are those of the locks."""

    OLD_PREVIEWS = 1
    DELETED_DEPLOYMENTS = 2
    PUBLISHED_EVENTS = 3
    DECIDED_ANNOUNCEMENTS = 4
    PARKED_MESSAGES = 5
    UNSEEN_SESSIONS = 6


@dataclass(frozen=True, slots=True)
class Swept:
    """What one step of a chore removed, and where the next one goes on; None if nothing is left to do."""

    rows: int
    cursor: Cursor | None


NOTHING = Swept(0, None)


def retention_of(chore: RetentionTask, settings: Settings) -> timedelta | None:
    """How long what the chore removes is kept; None if it is never removed."""
    return {
        RetentionTask.OLD_PREVIEWS: settings.preview_max_age or None,
        RetentionTask.DELETED_DEPLOYMENTS: settings.deleted_retention,
        RetentionTask.PUBLISHED_EVENTS: settings.outbox_retention,
        RetentionTask.DECIDED_ANNOUNCEMENTS: settings.inbox_retention,
        RetentionTask.PARKED_MESSAGES: settings.parked_retention,
        RetentionTask.UNSEEN_SESSIONS: settings.session_retention,
    }[chore]


async def sweep(session: AsyncSession, chore: RetentionTask, settings: Settings, cursor: Cursor = START) -> Swept:
    """One step of a chore, of at most `sweep_batch_size` rows; nothing while another process is at it.

    The database's clock says what is old. Others see the effect once the transaction is committed.
    """
    retention = retention_of(chore, settings)
    if retention is None:
        return NOTHING
    begun = (await session.execute(_BEGIN, {"locks": _LOCKS, "chore": chore.value})).one()
    if not begun.ours:
        return NOTHING
    try:
        before = begun.now - retention
    except OverflowError:  # longer than there has been time
        return NOTHING
    if chore in _WALKS:
        rows = min(settings.sweep_batch_size, VERSIONS_AT_A_TIME)
        limits = Limits(before=before, keep=settings.production_versions_kept, rows=rows)
        step = await _WALKS[chore](session, limits, cursor)
        return Swept(step.changed, step.cursor)
    removed = await _REMOVALS[chore](session, before, settings.sweep_batch_size)
    return Swept(removed, START if removed == settings.sweep_batch_size else None)


_WALKS: dict[RetentionTask, Callable[[AsyncSession, Limits, Cursor], Awaitable[Step]]] = {
    RetentionTask.OLD_PREVIEWS: delete_old_previews,
    RetentionTask.DELETED_DEPLOYMENTS: purge_deleted,
}
_REMOVALS: dict[RetentionTask, Callable[[AsyncSession, datetime, int], Awaitable[int]]] = {
    RetentionTask.PUBLISHED_EVENTS: remove_published,
    RetentionTask.DECIDED_ANNOUNCEMENTS: remove_decided,
    RetentionTask.PARKED_MESSAGES: remove_parked,
    RetentionTask.UNSEEN_SESSIONS: remove_unseen,
}
