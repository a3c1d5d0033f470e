"""The history of what served: the rows of the ledger with their end, and the production periods of a deployment."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, literal_column, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from services.errors import PodiumError
from services.storage.models import Promotion
from services.storage.shared_lists import ListStatement, Question

# Shown per deployment. The ledger has all periods.
PERIODS_SHOWN = 10
# Later than every generation: the largest number of its column.
NO_GENERATION = 2**63 - 1

# A column for queries of `deployments`: one index lookup per row returned, and none for a row that never served.
# The order of `next` lets the planner choose the one index that has it, even on an empty table.
PERIODS_SQL = f"""
CASE WHEN deployments.promoted_at IS NOT NULL THEN (
    SELECT jsonb_agg(jsonb_build_array(period.generation, period.since, period.until) ORDER BY period.generation DESC)
    FROM (
        SELECT began.generation, began.at AS since, ended.at AS until
        FROM promotions AS began
        LEFT JOIN LATERAL (
            SELECT at FROM promotions AS next
            WHERE next.agent_id = began.agent_id AND next.generation > began.generation
            ORDER BY next.generation
            LIMIT 1
        ) AS ended ON true
        WHERE began.agent_id = deployments.agent_id AND began.to_deployment_id = deployments.id
        ORDER BY began.generation DESC
        LIMIT {PERIODS_SHOWN}
    ) AS period
) END
"""  # noqa: S608 - built from constants only
PERIODS = literal_column(PERIODS_SQL, JSONB).label("periods")

_Own = aliased(
    Promotion,
    select(Promotion)
    .where(Promotion.agent_id == bindparam("agent_id"), Promotion.generation < bindparam("before"))
    .order_by(Promotion.generation.desc())
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
    .subquery(),
)
_Next = aliased(Promotion)
# The order lets the planner choose the one index that has it, even on an empty table.
_UNTIL = (
    select(_Next.at)
    .where(_Next.agent_id == _Own.agent_id, _Next.generation > _Own.generation)
    .order_by(_Next.generation)
    .limit(1)
    .scalar_subquery()
)
_HISTORY = select(_Own, _UNTIL.label("until")).order_by(_Own.generation.desc())
_HISTORY_STATEMENT = ListStatement(_HISTORY)
_AT = (
    select(Promotion, _Next.at)
    .outerjoin(_Next, (_Next.agent_id == Promotion.agent_id) & (_Next.generation == Promotion.generation + 1))
    .where(Promotion.agent_id == bindparam("agent_id"), Promotion.at <= bindparam("at"))
    .order_by(Promotion.at.desc())
    .limit(1)
)


class NothingServedYet(PodiumError):
    """Nothing served this agent at that time."""

    status = 404
    reason = "nothing-served-yet"


@dataclass(frozen=True, slots=True)
class Period:
    """A period in production: the generation that began it, and its end; `until` is None if it has not ended."""

    generation: int
    since: datetime
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the ledger, and the time of the next row; `until` is None for the newest row."""

    promotion: Promotion
    until: datetime | None

    @property
    def lasted(self) -> timedelta | None:
        """How long this generation lasted; None for the newest."""
        return None if self.until is None else self.until - self.promotion.at


async def history(
    session: AsyncSession, agent_id: UUID, *, limit: int, offset: int = 0, before: int | None = None
) -> list[Change]:
    """A page of the agent's ledger, newest first; with `before`, only earlier generations than this one."""
    parameters = {"agent_id": agent_id, "limit": limit, "offset": offset, "before": before or NO_GENERATION}
    rows = await session.execute(_HISTORY, parameters)
    return [Change(promotion, until) for promotion, until in rows]


def history_question(agent_id: UUID, *, limit: int, offset: int = 0) -> Question:
    """Asks for the same page; no row if the agent does not exist."""
    parameters = {"agent_id": agent_id, "limit": limit, "offset": offset, "before": NO_GENERATION}
    return _HISTORY_STATEMENT.question(parameters)


async def served_at(session: AsyncSession, agent_id: UUID, at: datetime) -> Change:
    """The change that was in effect at this time. Raises `NothingServedYet` before the first one."""
    row = (await session.execute(_AT, {"agent_id": agent_id, "at": at})).one_or_none()
    if row is not None:
        return Change(*row)
    first = await session.scalar(select(Promotion.at).where(Promotion.agent_id == agent_id, Promotion.generation == 1))
    why = "nothing has served it yet" if first is None else f"its first generation began at {_formatted(first)}"
    raise NothingServedYet(f"Nothing served this agent at {_formatted(at)}: {why}.")


def periods_of(column: Sequence[Sequence[Any]] | None) -> tuple[Period, ...]:
    """The periods in a value of the column `PERIODS`, newest first."""
    return tuple(
        Period(generation, _parsed(since), None if until is None else _parsed(until))
        for generation, since, until in column or ()
    )


def periods_after(
    periods: Sequence[Period], deployment_id: str, changes: Sequence[tuple[int, datetime, str | None]]
) -> tuple[Period, ...]:
    """The last periods of a deployment after these changes: generation, time, and the deployment that serves since."""
    found = list(periods)
    for generation, at, serves in changes:
        if found and found[0].until is None:
            found[0] = replace(found[0], until=at)
        if serves == deployment_id:
            found.insert(0, Period(generation, at, None))
    return tuple(found[:PERIODS_SHOWN])


def _parsed(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _formatted(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
