"""Promotes of many callers in one transaction: decided on what an unlocked read shows, written if that has not changed.

The decision is that of `promote`. What cannot be made this way is made by `promote`, under the agent's lock.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self
from uuid import UUID

import asyncpg

from services.domain.caller import Caller
from services.domain.state import AgentSnapshot, DeploymentState
from services.errors import PodiumError, Unavailable
from services.promotion.history import PERIODS_SQL, Period, periods_after, periods_of
from services.promotion.promote import promoted
from services.settings import Settings
from services.storage.database import error_of_state
from services.storage.driver import AWAY, PreparedConnection, Row
from services.storage.unlocked import READ, WRITE, Unlocked, arguments, unlocked

_READ, _WRITE = 0, 1


@dataclass(frozen=True, slots=True)
class Promote:
    """One request to promote a deployment."""

    agent_id: UUID
    deployment_id: str
    caller: Caller


@dataclass(frozen=True, slots=True)
class Promoted:
    """What one promote has committed: the agent after it, the deployment, and its last periods in production."""

    state: AgentSnapshot
    deployment: DeploymentState
    periods: tuple[Period, ...]


Result = Promoted | PodiumError | None


class PromotesTogether:
    """Makes promotes in one transaction, on a connection of its own, which opens at the first one."""

    def __init__(self, settings: Settings, *, application_name: str, on_events: Callable[[], None]) -> None:
        """`on_events` is called after each commit that wrote events."""
        self._seconds = settings.database_timeout.total_seconds()
        self._on_events = on_events
        limits = {"lock_timeout": settings.lock_timeout, "statement_timeout": settings.statement_timeout}
        self._connection = PreparedConnection(
            settings,
            lambda: (READ.format(extra=PERIODS_SQL), WRITE),
            application_name=application_name,
            options={name: str(int(limit.total_seconds() * 1000)) for name, limit in limits.items()},
        )

    async def make(self, promotes: Sequence[Promote]) -> list[Result]:
        """The committed result or the refusal of each, in the given order; None for what must be made under the lock.

        Those of one agent are decided in their order, each one on what the one before it left. All of an agent are None
        if another transaction has locked or changed it, or one of the deployments, meanwhile.

        Raises `Unavailable` if the database is unavailable or does not respond in time; promotes may have been
        committed all the same.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._made(promotes)
        except TimeoutError as exc:
            self._connection.drop()
            raise Unavailable("The database does not respond in time: try again.") from exc
        except AWAY as exc:
            self._connection.drop()
            raise _error(exc) from exc

    def close(self) -> None:
        """Close the connection."""
        self._connection.drop()

    async def _made(self, promotes: Sequence[Promote]) -> list[Result]:
        ids = [each.agent_id for each in promotes], [each.deployment_id for each in promotes]
        read = unlocked(await self._connection.read(_READ, *ids))
        decisions = [_Decisions.of(read[agent_id], own) for agent_id, own in _by_agent(promotes) if agent_id in read]
        if not decisions:
            return [None] * len(promotes)
        written = arguments([(each.before, each.after) for each in decisions])
        rows: list[Row] = await self._connection.fetch(_WRITE, *written)
        unchanged = {row["id"] for row in rows}
        results: list[Result] = [None] * len(promotes)
        has_events = False
        for each in decisions:
            if each.before.state.agent.id in unchanged:
                has_events = has_events or bool(each.after.events)
                for position, result in each.results:
                    results[position] = result
        if has_events:
            self._on_events()
        return results


@dataclass(frozen=True, slots=True)
class _Decisions:
    """What was decided about the promotes of one agent: its state before and after, and each result by position."""

    before: Unlocked
    after: AgentSnapshot
    results: list[tuple[int, Promoted | PodiumError]]

    @classmethod
    def of(cls, before: Unlocked, promotes: Sequence[tuple[int, Promote]]) -> Self:
        state = before.state
        results: list[tuple[int, Promoted | PodiumError]] = []
        for position, each in promotes:
            try:
                state = promoted(state, each.deployment_id, each.caller)
            except PodiumError as refusal:
                results.append((position, refusal))
            else:
                results.append((position, _result(before, state, each.deployment_id)))
        return cls(before, state, results)


def _by_agent(promotes: Sequence[Promote]) -> list[tuple[UUID, list[tuple[int, Promote]]]]:
    """The promotes of each agent in their order, with their positions."""
    numbered = sorted(enumerate(promotes), key=lambda each: each[1].agent_id)
    return [(agent_id, list(own)) for agent_id, own in groupby(numbered, key=lambda each: each[1].agent_id)]


def _result(before: Unlocked, state: AgentSnapshot, deployment_id: str) -> Promoted:
    changes = [(row.generation, row.at, row.after.deployment_id if row.after else None) for row in state.ledger]
    periods = periods_of(before.extra[deployment_id])
    return Promoted(state, state.deployments[deployment_id], periods_after(periods, deployment_id, changes))


def _error(error: Exception) -> Exception:
    """The domain error; the error itself if one of the promotes, or a defect, may be its cause."""
    if not isinstance(error, asyncpg.PostgresError):
        return Unavailable()
    domain_error = error_of_state(error.sqlstate or "")
    return domain_error() if domain_error else error
