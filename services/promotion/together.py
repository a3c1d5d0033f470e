"""Promotes and rollbacks of many callers in one transaction: decided on an unlocked read, written if it still holds.

The decisions are those of `promote` and `roll_back`. What cannot be made this way is made by them, under the agent's
lock.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self
from uuid import UUID

import asyncpg

from services.domain.caller import Caller
from services.domain.state import AgentSnapshot, DeploymentState
from services.errors import PodiumError, Unavailable
from services.promotion.history import PERIODS_SQL, Period, periods_after, periods_of
from services.promotion.promote import promoted
from services.promotion.rollback import LEGACY, Past, Plan, planned, rolled_back
from services.promotion.rollback_targets import (
    LAST_SERVED_SQL,
    LEGACY_LAST_SERVED_SQL,
    WALK_SQL,
    Step,
    Target,
    Undecided,
    target_of_walk,
)
from services.settings import Settings
from services.storage.database import error_of_state
from services.storage.driver import AWAY, PreparedConnection, Row
from services.storage.unlocked import READ, WRITE, Unlocked, argument, unlocked

_READ, _WRITE = 0, 1
# For what deployments are read: the values are the last periods, the generation that put it into service last, and the
# generation of a step of the walk. $4 has the agents whose ledgers are walked.
_READ_SQL = READ.format(
    further=f"""(
        SELECT agent_id, deployment_id, CASE WHEN is_address THEN 'address' ELSE 'step' END, generation
        FROM ({WALK_SQL.format(agent_ids="$4::uuid[]")}) AS step
    )""",  # noqa: S608 - composed of constants
    value=f"""CASE pair.purpose
        WHEN 'promote' THEN ({PERIODS_SQL})
        WHEN 'restore' THEN CASE WHEN pair.deployment_id IS NULL
            THEN to_jsonb(({LEGACY_LAST_SERVED_SQL.format(agent_id="pair.agent_id")}))
            ELSE to_jsonb(({LAST_SERVED_SQL.format(agent_id="pair.agent_id", deployment_id="pair.deployment_id")}))
            END
        ELSE to_jsonb(pair.number)
    END""",
)


@dataclass(frozen=True, slots=True)
class Promoted:
    """What one promote has committed: the agent after it, the deployment, and its last periods in production."""

    state: AgentSnapshot
    deployment: DeploymentState
    periods: tuple[Period, ...]


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What one rollback has committed: the agent after it."""

    state: AgentSnapshot


@dataclass(frozen=True, slots=True)
class Promote:
    """One request to promote a deployment."""

    agent_id: UUID
    deployment_id: str
    caller: Caller

    @property
    def reads(self) -> tuple[str | None, str] | None:
        """The deployment that it names, and for what it is read."""
        return self.deployment_id, "promote"

    def decided(self, before: Unlocked, state: AgentSnapshot) -> tuple[AgentSnapshot, Promoted]:
        """The state after it, and its result; `before` is what was read. Raises the reason of a refusal."""
        state = promoted(state, self.deployment_id, self.caller)
        changes = [(row.generation, row.at, row.after.deployment_id if row.after else None) for row in state.ledger]
        periods = periods_of(_value(before, "promote", self.deployment_id))
        after = periods_after(periods, self.deployment_id, changes)
        return state, Promoted(state, state.deployments[self.deployment_id], after)


@dataclass(frozen=True, slots=True)
class _ToATarget:
    agent_id: UUID
    to: str | None
    caller: Caller

    @property
    def reads(self) -> tuple[str | None, str] | None:
        """The deployment that it names, and for what it is read; None if the ledger is walked instead."""
        return None if self.to is None else (self._named, "restore")

    @property
    def _named(self) -> str | None:
        return None if self.to == LEGACY else self.to

    def _past(self, before: Unlocked) -> Past:
        if self.to is not None:
            return Past(restored=_value(before, "restore", self._named))
        return Past(newest=target_of_walk(before.state, _steps(before)))


@dataclass(frozen=True, slots=True)
class RollBack(_ToATarget):
    """One request to roll an agent back, to one of the `probed` targets; None allows any.

    In a group, it can only be decided before all other changes of its agent: it reads the ledger, which they extend.
    """

    probed: Sequence[Target] | None = None

    def decided(self, before: Unlocked, state: AgentSnapshot) -> tuple[AgentSnapshot, RolledBack]:
        """As of a promote. Raises `Undecided` as well."""
        if state is not before.state:
            raise Undecided
        state = rolled_back(state, self.to, self.caller, self._past(before), self.probed)
        return state, RolledBack(state)


@dataclass(frozen=True, slots=True)
class PlanRollback(_ToATarget):
    """One question where a rollback would go now. It changes nothing."""

    def decided(self, before: Unlocked, state: AgentSnapshot) -> tuple[AgentSnapshot, Plan]:
        """As of a promote; on what was read, whatever the group changes. Raises `Undecided` as well."""
        return state, planned(before.state, self.to, self.caller, self._past(before))


Change = Promote | RollBack | PlanRollback
Made = Promoted | RolledBack | Plan
Result = Made | PodiumError | None


class CutoversTogether:
    """Makes promotes and rollbacks in one transaction, on a connection of its own, which opens at the first one."""

    def __init__(self, settings: Settings, *, application_name: str, on_events: Callable[[], None]) -> None:
        """`on_events` is called after each commit that wrote events."""
        self._seconds = settings.database_timeout.total_seconds()
        self._on_events = on_events
        limits = {"lock_timeout": settings.lock_timeout, "statement_timeout": settings.statement_timeout}
        self._connection = PreparedConnection(
            settings,
            lambda: (_READ_SQL, WRITE),
            application_name=application_name,
            options={name: str(int(limit.total_seconds() * 1000)) for name, limit in limits.items()},
        )

    async def make(self, changes: Sequence[Change]) -> list[Result]:
        """The committed result or the refusal of each, in the given order; None for what must be made under the lock.

        Those of one agent are decided in their order, each one on what the one before it left. All of an agent are None
        if another transaction has locked or changed it, or one of the deployments, meanwhile.

        Raises `Unavailable` if the database is unavailable or does not respond in time; changes may have been
        committed all the same.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._made(changes)
        except TimeoutError as exc:
            self._connection.drop()
            raise Unavailable("The database does not respond in time: try again.") from exc
        except AWAY as exc:
            self._connection.drop()
            raise _error(exc) from exc

    def close(self) -> None:
        """Close the connection."""
        self._connection.drop()

    async def _made(self, changes: Sequence[Change]) -> list[Result]:
        read = unlocked(await self._connection.read(_READ, *_wanted(changes)))
        found = [_Decisions.of(read[agent_id], own) for agent_id, own in _by_agent(changes) if agent_id in read]
        decisions = [each for each in found if each is not None]
        results: list[Result] = [None] * len(changes)
        to_write = [each for each in decisions if each.needs_comparison]
        unchanged = await self._written(to_write)
        for each in decisions:
            if not each.needs_comparison or each.before.state.agent.id in unchanged:
                for position, result in each.results:
                    results[position] = result
        return results

    async def _written(self, decisions: Sequence["_Decisions"]) -> set[UUID]:
        """The agents that had not changed, about which everything is written now."""
        if not decisions:
            return set()
        rows: list[Row] = await self._connection.fetch(
            _WRITE, argument([(each.before, each.after) for each in decisions])
        )
        unchanged = {row["id"] for row in rows}
        if any(each.after.events for each in decisions if each.before.state.agent.id in unchanged):
            self._on_events()
        return unchanged


@dataclass(frozen=True, slots=True)
class _Decisions:
    """What was decided about the changes of one agent: its state before and after, and each result by position."""

    before: Unlocked
    after: AgentSnapshot
    results: list[tuple[int, Made | PodiumError]]
    needs_comparison: bool
    """Whether there is more than plans, which only tell what was read."""

    @classmethod
    def of(cls, before: Unlocked, changes: Sequence[tuple[int, Change]]) -> Self | None:
        """None if one cannot be decided on what was read."""
        state = before.state
        results: list[tuple[int, Made | PodiumError]] = []
        for position, each in changes:
            try:
                state, result = each.decided(before, state)
            except Undecided:
                return None
            except PodiumError as refusal:
                results.append((position, refusal))
            else:
                results.append((position, result))
        return cls(before, state, results, any(not isinstance(each, PlanRollback) for _, each in changes))


def must_be_first(change: Change) -> bool:
    """Whether a group cannot make this change after another one of the same agent."""
    return isinstance(change, RollBack)


def _wanted(changes: Sequence[Change]) -> tuple[list[UUID], list[str | None], list[str], list[UUID]]:
    """The parameters of the read."""
    named = [(each.agent_id, *reads) for each in changes if (reads := each.reads) is not None]
    walked = {each.agent_id for each in changes if each.reads is None}
    # Of an agent whose ledger is walked, its row and production are read as well.
    named += [(agent_id, None, "walk") for agent_id in walked]
    return [each[0] for each in named], [each[1] for each in named], [each[2] for each in named], list(walked)


def _by_agent(changes: Sequence[Change]) -> list[tuple[UUID, list[tuple[int, Change]]]]:
    """The changes of each agent in their order, with their positions."""
    numbered = sorted(enumerate(changes), key=lambda each: each[1].agent_id)
    return [(agent_id, list(own)) for agent_id, own in groupby(numbered, key=lambda each: each[1].agent_id)]


def _value(before: Unlocked, purpose: str, deployment_id: str | None) -> Any:  # noqa: ANN401 - JSON
    return next((value for id_, value in before.values.get(purpose, ()) if id_ == deployment_id), None)


def _steps(before: Unlocked) -> list[Step]:
    steps = [Step(generation, id_, is_address=False) for id_, generation in before.values.get("step", ())]
    steps += [Step(generation, None, is_address=True) for _, generation in before.values.get("address", ())]
    return sorted(steps, key=lambda each: each.generation, reverse=True)


def _error(error: Exception) -> Exception:
    """The domain error; the error itself if one of the changes, or a defect, may be its cause."""
    if not isinstance(error, asyncpg.PostgresError):
        return Unavailable()
    domain_error = error_of_state(error.sqlstate or "")
    return domain_error() if domain_error else error
