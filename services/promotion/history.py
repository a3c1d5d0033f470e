"""What served when: each row of the ledger with what ended it, and the times that a version was in production."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, literal_column, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from services.errors import PodiumError
from services.storage.models import Promotion

# Of a version that goes in and out of production all the time: the ledger has all of them.
PERIODS_SHOWN = 10

# For queries of `deployments`: one look at an index for each row that they answer, and none for what never served.
PERIODS = literal_column(
    f"""
CASE WHEN deployments.promoted_at IS NOT NULL THEN (
    SELECT jsonb_agg(jsonb_build_array(period.generation, period.since, period.until) ORDER BY period.generation DESC)
    FROM (
        SELECT began.generation, began.at AS since, ended.at AS until
        FROM promotions AS began
        LEFT JOIN promotions AS ended
            ON ended.agent_id = began.agent_id AND ended.generation = began.generation + 1
        WHERE began.agent_id = deployments.agent_id AND began.to_deployment_id = deployments.id
        ORDER BY began.generation DESC
        LIMIT {PERIODS_SHOWN}
    ) AS period
) END
""",  # noqa: S608 - no part of it comes from elsewhere
    JSONB,
).label("periods")

_Own = aliased(
    Promotion,
    select(Promotion)
    .where(Promotion.agent_id == bindparam("agent_id"))
    .order_by(Promotion.generation.desc())
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
    .subquery(),
)
_Next = aliased(Promotion)
_HISTORY = (
    select(_Own, _Next.at)
    .outerjoin(_Next, (_Next.agent_id == _Own.agent_id) & (_Next.generation == _Own.generation + 1))
    .order_by(_Own.generation.desc())
)
_HELD = (
    select(Promotion, _Next.at)
    .outerjoin(_Next, (_Next.agent_id == Promotion.agent_id) & (_Next.generation == Promotion.generation + 1))
    .where(Promotion.agent_id == bindparam("agent_id"), Promotion.at <= bindparam("at"))
    .order_by(Promotion.at.desc())
    .limit(1)
)


class NothingServedYet(PodiumError):
    """Nothing served this agent then."""

    status = 404
    reason = "nothing-served-yet"


@dataclass(frozen=True, slots=True)
class Period:
    """A time in production: the generation that began it, and when the next one ended it."""

    generation: int
    since: datetime
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the ledger, and when the next one ended what it began; None if it holds."""

    promotion: Promotion
    until: datetime | None

    @property
    def lasted(self) -> timedelta | None:
        """For how long it held; None if it still does."""
        return None if self.until is None else self.until - self.promotion.at


async def history(session: AsyncSession, agent_id: UUID, *, limit: int, offset: int = 0) -> list[Change]:
    """The agent's ledger, newest first."""
    rows = await session.execute(_HISTORY, {"agent_id": agent_id, "limit": limit, "offset": offset})
    return [Change(promotion, until) for promotion, until in rows]


async def served_at(session: AsyncSession, agent_id: UUID, at: datetime) -> Change:
    """What held at this moment. Raises `NothingServedYet` for one before the first change."""
    row = (await session.execute(_HELD, {"agent_id": agent_id, "at": at})).one_or_none()
    if row is not None:
        return Change(*row)
    first = await session.scalar(select(Promotion.at).where(Promotion.agent_id == agent_id, Promotion.generation == 1))
    why = "nothing has served it yet" if first is None else f"the first to serve it came at {_written(first)}"
    raise NothingServedYet(f"Nothing served this agent at {_written(at)}: {why}.")


def periods_of(found: Sequence[Sequence[Any]] | None) -> tuple[Period, ...]:
    """What the column `PERIODS` holds: the last times in production, newest first."""
    return tuple(
        Period(generation, _moment(since), None if until is None else _moment(until))
        for generation, since, until in found or ()
    )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
