"""Retention tasks: short transactions remove the rows that are past their retention, so tables stay bounded.

An advisory lock per task ensures that one process at a time runs it. Other processes skip a locked task.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from enum import IntEnum

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.calls.counts import remove_old
from services.events.log import remove_published
from services.registration.inbox import remove_decided
from services.registration.parked import remove_parked
from services.retention.instances import forget_departed, remove_failed_instances
from services.retention.versions import START, Cursor, StepLimits, TaskStep, delete_old_previews, purge_deleted
from services.routing.conversations import remove_unseen
from services.settings import Settings
from services.webhooks.missed import count_missed
from services.webhooks.registry import remove_of_deleted

# First half of the advisory lock's key; must differ from the locks of the relay and of migrations.
_LOCKS = 0x7377_6570
# Each version may lock another agent, whose promotions wait until the transaction ends.
VERSIONS_AT_A_TIME = 100
_BEGIN = text(
    "SELECT pg_try_advisory_xact_lock(CAST(:locks AS int), CAST(:task AS int)) AS ours, clock_timestamp() AS now"
)


class RetentionTask(IntEnum):
    """What is removed; the number is the second half of the advisory lock's key."""

    OLD_PREVIEWS = 1
    DELETED_DEPLOYMENTS = 2
    PUBLISHED_EVENTS = 3
    DECIDED_ANNOUNCEMENTS = 4
    PARKED_MESSAGES = 5
    UNSEEN_SESSIONS = 6
    FAILED_INSTANCES = 7
    DEPARTED_INSTANCES = 8
    CALL_COUNTS = 9
    WEBHOOKS_OF_DELETED_AGENTS = 10


NOTHING = TaskStep(0, None)


def retention_of(task: RetentionTask, settings: Settings) -> timedelta | None:
    """How long the rows of the task are kept; None if the task is switched off."""
    return {
        RetentionTask.OLD_PREVIEWS: settings.preview_max_age or None,
        RetentionTask.DELETED_DEPLOYMENTS: settings.deleted_retention,
        RetentionTask.PUBLISHED_EVENTS: settings.outbox_retention,
        RetentionTask.DECIDED_ANNOUNCEMENTS: settings.inbox_retention,
        RetentionTask.PARKED_MESSAGES: settings.parked_retention,
        RetentionTask.UNSEEN_SESSIONS: settings.conversation_idle,
        RetentionTask.FAILED_INSTANCES: settings.instance_retention,
        RetentionTask.DEPARTED_INSTANCES: settings.inbox_retention,
        RetentionTask.CALL_COUNTS: settings.call_counts_retention,
        RetentionTask.WEBHOOKS_OF_DELETED_AGENTS: settings.deleted_retention,
    }[task]


async def sweep(session: AsyncSession, task: RetentionTask, settings: Settings, cursor: Cursor = START) -> TaskStep:
    """Run one step of a task, of at most `sweep_batch_size` rows; does nothing while another process runs the task.

    Ages are measured by the database's clock. Others see the effect once the transaction is committed.
    """
    retention = retention_of(task, settings)
    if retention is None:
        return NOTHING
    begun = (await session.execute(_BEGIN, {"locks": _LOCKS, "task": task.value})).one()
    if not begun.ours:
        return NOTHING
    try:
        before = begun.now - retention
    except OverflowError:  # the retention reaches back before the year 1
        return NOTHING
    if task in _PAGED_STEPS:
        rows = min(settings.sweep_batch_size, VERSIONS_AT_A_TIME)
        limits = StepLimits(before=before, keep=settings.production_versions_kept, rows=rows)
        return await _PAGED_STEPS[task](session, limits, cursor)
    if task is RetentionTask.PUBLISHED_EVENTS:
        return await _remove_published(session, before, settings.sweep_batch_size, cursor)
    removed = await _REMOVALS[task](session, before, settings.sweep_batch_size)
    return TaskStep(removed, START if removed == settings.sweep_batch_size else None)


async def _remove_published(session: AsyncSession, before: datetime, limit: int, cursor: Cursor) -> TaskStep:
    removed = await remove_published(session, before, limit, int(cursor.id or 0))
    if removed.events is not None:
        await count_missed(session, removed.events)
    reached = None if removed.reached is None else Cursor(START.since, str(removed.reached))
    return TaskStep(removed.rows, reached)


_PAGED_STEPS: dict[RetentionTask, Callable[[AsyncSession, StepLimits, Cursor], Awaitable[TaskStep]]] = {
    RetentionTask.OLD_PREVIEWS: delete_old_previews,
    RetentionTask.DELETED_DEPLOYMENTS: purge_deleted,
}
_REMOVALS: dict[RetentionTask, Callable[[AsyncSession, datetime, int], Awaitable[int]]] = {
    RetentionTask.DECIDED_ANNOUNCEMENTS: remove_decided,
    RetentionTask.PARKED_MESSAGES: remove_parked,
    RetentionTask.UNSEEN_SESSIONS: remove_unseen,
    RetentionTask.FAILED_INSTANCES: remove_failed_instances,
    RetentionTask.DEPARTED_INSTANCES: forget_departed,
    RetentionTask.CALL_COUNTS: remove_old,
    RetentionTask.WEBHOOKS_OF_DELETED_AGENTS: remove_of_deleted,
}
