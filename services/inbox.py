"""Reading the inbox: what became of announcements, which answers "why is my pod not there?"."""

from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, cast, exists, literal, null, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import Text, Uuid

from services.models import Parked, Registration
from services.queries import Page
from services.state import AgentState

# The outcome of what nobody could read far enough to decide it.
PARKED = "Parked"

_BIGINT_ZERO = literal(0)


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
