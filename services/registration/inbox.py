"""The inbox: the outcome of each announcement. It answers "why is my pod not there?"."""

from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    bindparam,
    cast,
    exists,
    literal,
    null,
    select,
    text,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import Text, Uuid

from services.domain.identity import EVERYBODY, Identity
from services.domain.state import AgentState
from services.identities.visibility import seen_parameters, visible
from services.storage.models import Parked, Registration
from services.storage.pages import Page
from services.storage.shared_lists import ListStatement, Question

# The outcome of a message that was parked without a decision.
PARKED = "Parked"

_BIGINT_ZERO = literal(0)
# More than there are combinations of conditions.
_SHAPES = 64
# One that sees some agents only: which ones is in the parameters of the statement.
_OF_SOME = replace(EVERYBODY, agents=())

# A removed message must have no effect if it is delivered again. Most have none: they are Stale by their time and id,
# or older than the deletion of their name, or rejected as before. A message from a pod whose clock was ahead may have
# one, since it now counts as newer than when it was decided. Its row stays until something at least as new was applied,
# or what it announced was deleted.
_REMOVE = text("""
WITH old AS (
    SELECT r.message_id
    FROM registrations AS r
    CROSS JOIN LATERAL (SELECT coalesce(r.dated_at, r.registered_at) AS at) AS dated
    WHERE r.received_at < :before AND (
        r.outcome = 'Rejected' OR dated.at IS NULL OR dated.at <= r.received_at
        OR EXISTS (
            SELECT FROM deployments AS d
            WHERE d.id = r.deployment_id AND (
                d.expires_at IS NOT NULL OR r.instance_id IS NULL AND NOT d.has_instances
                    AND (d.registered_at, d.registered_message_id) >= (dated.at, r.message_id)
            )
        )
        OR EXISTS (
            SELECT FROM instances AS i
            WHERE i.deployment_id = r.deployment_id AND i.instance_id = coalesce(r.instance_id, '')
                AND (i.registered_at, i.registered_message_id) >= (dated.at, r.message_id)
        )
        OR EXISTS (
            SELECT FROM departed_instances AS gone
            WHERE gone.agent_name = r.agent_name AND gone.deployment_id = r.deployment_id
                AND gone.instance_id = coalesce(r.instance_id, '')
                AND (gone.registered_at, gone.message_id) >= (dated.at, r.message_id)
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
    """One announcement and its outcome. `parked_id`, and more than one attempt, only if it has no row in the inbox."""

    message_id: UUID | None
    agent_name: str | None
    deployment_id: str | None
    instance_id: str | None
    registered_at: datetime | None
    received_at: datetime
    outcome: str
    reason: str | None
    parked_id: UUID | None
    attempts: int


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A filter for announcements: those for this name, received from `since` to `until`."""

    name: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    deployment_id: str | None = None
    identity: Identity = EVERYBODY
    """Only those for agents that it sees."""

    @classmethod
    def of(cls, agent: AgentState) -> "Lifetime":
        """The announcements for this agent only, without those for earlier or later agents of the same name."""
        return cls(agent.name, agent.created_at, agent.deleted_at)

    def parameters(self) -> dict[str, Any]:
        """Its conditions and their values, for the parameters of the statement."""
        values = {"name": self.name, "since": self.since, "until": self.until, "deployment_id": self.deployment_id}
        given = {name: value for name, value in values.items() if value is not None}
        return {**given, **seen_parameters(self.identity)}


async def recent_registrations(session: AsyncSession, lifetime: Lifetime, page: Page) -> list[InboxRow]:
    """One page of announcements, newest first, also for a name that no agent has.

    Includes parked messages without a row in the inbox: dead letters, and messages without a readable id.
    """
    given = lifetime.parameters()
    rows = await session.execute(_recent(frozenset(given)), {**given, **_parameters(page)})
    return [InboxRow(*row) for row in rows]


def registrations_question(lifetime: Lifetime, page: Page) -> Question:
    """Asks for the same page."""
    given = lifetime.parameters()
    return _statement(frozenset(given)).question({**given, **_parameters(page)})


def _parameters(page: Page) -> dict[str, int]:
    return {"limit": page.limit, "offset": page.offset, "last": page.offset + page.limit}


async def remove_decided(session: AsyncSession, before: datetime, limit: int) -> int:
    """Delete up to `limit` decided messages received before `before`; returns how many it deleted.

    Deletes only messages that have no effect if they are delivered again; the others stay for longer.
    """
    return int(await session.scalar(_REMOVE, {"before": before, "limit": limit}) or 0)


# `given` are the names of the conditions that the statement has.
@lru_cache(_SHAPES)
def _recent(given: frozenset[str]) -> Select[Any]:
    last = bindparam("last", type_=BigInteger)
    both = union_all(
        select(_decided(given).limit(last).subquery()), select(_parked(given).limit(last).subquery())
    ).subquery()
    columns = [both.c[field.name] for field in fields(InboxRow)]
    query = select(*columns).order_by(both.c.received_at.desc(), both.c.seq.desc())
    return query.limit(bindparam("limit", type_=BigInteger)).offset(bindparam("offset", type_=BigInteger))


@lru_cache(_SHAPES)
def _statement(given: frozenset[str]) -> ListStatement:
    return ListStatement(_recent(given))


def _decided(given: frozenset[str]) -> Select[Any]:
    query = select(
        Registration.message_id,
        Registration.agent_name,
        Registration.deployment_id,
        Registration.instance_id,
        Registration.registered_at,
        Registration.received_at,
        Registration.outcome,
        Registration.reason,
        cast(null(), Uuid).label("parked_id"),
        literal(1).label("attempts"),
        Registration.seq,
    ).where(_matches(given, Registration))
    # The index of names is ordered by `seq`.
    return query.order_by(Registration.seq.desc() if "name" in given else Registration.received_at.desc())


def _parked(given: frozenset[str]) -> Select[Any]:
    return (
        select(
            Parked.message_id,
            Parked.agent_name,
            Parked.deployment_id,
            cast(null(), Text).label("instance_id"),
            cast(null(), Registration.registered_at.type).label("registered_at"),
            Parked.received_at,
            cast(literal(PARKED), Text).label("outcome"),
            Parked.error.label("reason"),
            Parked.id.label("parked_id"),
            Parked.attempts,
            _BIGINT_ZERO.label("seq"),
        )
        .where(~exists().where(Registration.message_id == Parked.message_id), _matches(given, Parked))
        .order_by(Parked.received_at.desc())
    )


def _matches(given: frozenset[str], table: type[Registration | Parked]) -> ColumnElement[bool]:
    conditions = {
        "name": table.agent_name == bindparam("name"),
        "since": table.received_at >= bindparam("since"),
        "until": table.received_at <= bindparam("until"),
        "deployment_id": table.deployment_id == bindparam("deployment_id"),
    }
    identity = _OF_SOME if given.intersection(seen_parameters(_OF_SOME)) else EVERYBODY
    chosen = [condition for name, condition in conditions.items() if name in given]
    return and_(visible(table.agent_name, identity), *chosen)
