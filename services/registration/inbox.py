"""The inbox: what became of announcements, which answers "why is my pod not there?", and for how long it is kept."""

from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, cast, exists, literal, null, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import Text, Uuid

from services.domain.state import AgentState
from services.storage.models import Parked, Registration
from services.storage.pages import Page

# The outcome of what nobody could read far enough to decide it.
PARKED = "Parked"

_BIGINT_ZERO = literal(0)

# A message that comes again after its row is gone is Stale by its pair, or older than the deletion of its name, or
# refused as it was. A pod's clock that runs ahead breaks this: the message may count as newer than what it was decided
# as. Its row stays until something at least as new was applied, or what it announced was deleted.
_REMOVE = text("""
WITH old AS (
    SELECT r.message_id
    FROM registrations AS r
    CROSS JOIN LATERAL (SELECT coalesce(r.dated_at, r.registered_at) AS at) AS dated
    WHERE r.received_at < :before AND (
        r.outcome = 'Rejected' OR dated.at IS NULL OR dated.at <= r.received_at
        OR EXISTS (
            SELECT FROM deployments AS d
            WHERE d.id = r.deployment_id
                AND (d.expires_at IS NOT NULL OR (d.registered_at, d.registered_message_id) >= (dated.at, r.message_id))
        )
        OR r.deployment_id IS NULL AND EXISTS (
            SELECT FROM agents AS a
            WHERE a.name = r.agent_name AND a.deleted_at IS NULL
                AND (a.registered_at, a.registered_message_id) >= (dated.at, r.message_id)
        )
        OR r.deployment_id IS NULL AND EXISTS (
            SELECT FROM agents AS a WHERE a.name = r.agent_name AND a.deleted_at > dated.at
        )
    )
    ORDER BY r.received_at
    LIMIT :limit
), removed AS (
    DELETE FROM registrations WHERE message_id = ANY(ARRAY(SELECT message_id FROM old)) RETURNING message_id
)
SELECT count(*) FROM removed
""")


@dataclass(frozen=True, slots=True)
class InboxRow:
    """One announcement, and what became of it; `parked_id` and more than one attempt only of what is parked alone."""

    message_id: UUID | None
    agent_name: str | None
    deployment_id: str | None
    registered_at: datetime | None
    received_at: datetime
    outcome: str
    reason: str | None
    parked_id: UUID | None
    attempts: int


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Which announcements are meant: those for this name, from `since` to `until`."""

    name: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @classmethod
    def of(cls, agent: AgentState) -> "Lifetime":
        """Those of this agent alone, whoever had its name before or after."""
        return cls(agent.name, agent.created_at, agent.deleted_at)


async def recent_registrations(session: AsyncSession, wanted: Lifetime, page: Page) -> list[InboxRow]:
    """One page of announcements, newest first, also for a name that no agent has.

    What the broker or a registrar parked without an entry in the inbox is among them.
    """
    reach = page.offset + page.limit
    both = union_all(
        select(_decided(wanted).limit(reach).subquery()), select(_parked(wanted).limit(reach).subquery())
    ).subquery()
    columns = [both.c[field.name] for field in fields(InboxRow)]
    rows = await session.execute(
        select(*columns).order_by(both.c.received_at.desc(), both.c.seq.desc()).limit(page.limit).offset(page.offset)
    )
    return [InboxRow(*row) for row in rows]


async def remove_decided(session: AsyncSession, before: datetime, limit: int) -> int:
    """Forget at most so many messages that were received before then; how many they were.

    None of them has an effect when it comes again, known or not; what might have one is kept for longer.
    """
    return int(await session.scalar(_REMOVE, {"before": before, "limit": limit}) or 0)


def _decided(wanted: Lifetime) -> Select[tuple[object, ...]]:
    query: Select[tuple[object, ...]] = select(
        Registration.message_id,
        Registration.agent_name,
        Registration.deployment_id,
        Registration.registered_at,
        Registration.received_at,
        Registration.outcome,
        Registration.reason,
        cast(null(), Uuid).label("parked_id"),
        literal(1).label("attempts"),
        Registration.seq,
    )
    if wanted.name is None:
        return query.order_by(Registration.received_at.desc())
    # By `seq`, since that is what the index of a name is ordered by.
    return _within(query.where(Registration.agent_name == wanted.name), wanted, Registration).order_by(
        Registration.seq.desc()
    )


def _parked(wanted: Lifetime) -> Select[tuple[object, ...]]:
    query: Select[tuple[object, ...]] = select(
        Parked.message_id,
        Parked.agent_name,
        Parked.deployment_id,
        cast(null(), Registration.registered_at.type).label("registered_at"),
        Parked.received_at,
        cast(literal(PARKED), Text).label("outcome"),
        Parked.error.label("reason"),
        Parked.id.label("parked_id"),
        Parked.attempts,
        _BIGINT_ZERO.label("seq"),
    ).where(~exists().where(Registration.message_id == Parked.message_id))
    if wanted.name is not None:
        query = _within(query.where(Parked.agent_name == wanted.name), wanted, Parked)
    return query.order_by(Parked.received_at.desc())


def _within(
    query: Select[tuple[object, ...]], wanted: Lifetime, table: type[Registration | Parked]
) -> Select[tuple[object, ...]]:
    if wanted.since is not None:
        query = query.where(table.received_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(table.received_at <= wanted.until)
    return query
