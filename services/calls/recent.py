"""Calls and failures of the last hour, over all API processes, by minute."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.calls.counts import OTHERS

MINUTES = 60

# The minute that runs, and those before it. Rows of a process whose clock was ahead before its first write come later.
_RECENT = text("""
SELECT t.at AS until, c.* FROM (SELECT statement_timestamp() AS at) AS t LEFT JOIN LATERAL (
    SELECT agent_id, deployment_id, extract(epoch FROM date_trunc('minute', t.at) - minute)::int / 60 AS minutes_ago,
        sum(calls)::int AS calls, sum(agent_failures)::int AS agent_failures,
        sum(gateway_failures)::int AS gateway_failures, sum(answered)::int AS answered,
        sum(answer_seconds) AS answer_seconds, max(longest_seconds) AS longest_seconds
    FROM call_counts
    WHERE agent_id = ANY(:agent_ids) AND minute <= t.at
        AND minute > date_trunc('minute', t.at) - make_interval(mins => :minutes)
    GROUP BY agent_id, deployment_id, minute
) AS c ON true
""")


@dataclass(frozen=True, slots=True)
class Count:
    """Some calls: how many, which of them failed, and how long the agent took to begin its answers."""

    calls: int = 0
    agent_failures: int = 0
    """The agent answered with a server error, or broke its answer off."""
    gateway_failures: int = 0
    """The gateway could not get an answer, or nothing was Ready to give one."""
    answered: int = 0
    answer_seconds: float = 0.0
    longest_seconds: float = 0.0

    @property
    def failures(self) -> int:
        """Calls that failed for either reason."""
        return self.agent_failures + self.gateway_failures

    @property
    def mean_seconds(self) -> float | None:
        """The mean time to the first byte of an answer; None without answers."""
        return self.answer_seconds / self.answered if self.answered else None

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.calls + other.calls,
            self.agent_failures + other.agent_failures,
            self.gateway_failures + other.gateway_failures,
            self.answered + other.answered,
            self.answer_seconds + other.answer_seconds,
            max(self.longest_seconds, other.longest_seconds),
        )


NO_CALLS = Count()


@dataclass(frozen=True, slots=True)
class CallHour:
    """The calls of the last hour: by minute, the oldest first, up to the minute that runs at `until`."""

    until: datetime
    minutes: tuple[Count, ...]

    @property
    def total(self) -> Count:
        """All of them together."""
        return reduce(Count.__add__, self.minutes)

    @property
    def since(self) -> datetime:
        """The begin of the first minute."""
        return self.until.replace(second=0, microsecond=0) - timedelta(minutes=MINUTES - 1)


@dataclass(frozen=True, slots=True)
class RecentCalls:
    """The calls of the last hour of some agents, by agent, version and minutes ago."""

    until: datetime
    is_complete: bool
    """Whether every call is counted for its agent. Else a process had too many agents and versions to keep apart."""
    counts: dict[UUID, dict[tuple[str, int], Count]]

    def of_agent(self, agent_id: UUID) -> CallHour:
        """The calls of all versions of an agent, and of its legacy address."""
        return self._hour((ago, count) for (_, ago), count in self.counts.get(agent_id, {}).items())

    def of_version(self, agent_id: UUID, deployment_id: str) -> CallHour:
        """The calls of one version; of the legacy address if the id is empty."""
        of_agent = self.counts.get(agent_id, {})
        return self._hour((ago, count) for (version, ago), count in of_agent.items() if version == deployment_id)

    def versions_of(self, agent_id: UUID) -> list[str]:
        """The ids of the versions with calls, the empty id for the legacy address."""
        return sorted({deployment_id for deployment_id, _ in self.counts.get(agent_id, {})})

    def _hour(self, counts: Iterable[tuple[int, Count]]) -> CallHour:
        minutes = [NO_CALLS] * MINUTES
        for ago, count in counts:
            before = minutes[MINUTES - 1 - ago]
            minutes[MINUTES - 1 - ago] = before + count if before.calls else count
        return CallHour(self.until, tuple(minutes))


async def recent_calls(session: AsyncSession, agent_ids: Collection[UUID]) -> RecentCalls:
    """The calls of these agents within the last hour. Those of the last ten seconds may not be stored yet."""
    rows = (await session.execute(_RECENT, {"agent_ids": [*agent_ids, OTHERS], "minutes": MINUTES})).all()
    counts: dict[UUID, dict[tuple[str, int], Count]] = {}
    for _, agent_id, deployment_id, ago, *numbers in rows:
        if agent_id is not None:
            counts.setdefault(agent_id, {})[deployment_id, ago] = Count(*numbers)
    return RecentCalls(rows[0].until, OTHERS not in counts, counts)
