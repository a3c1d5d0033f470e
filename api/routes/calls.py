"""Calls and failures of the last hour, over all API processes."""

from datetime import datetime
from typing import Self
from uuid import UUID

from litestar import get
from litestar.params import FromPath
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.access import READ
from api.http.parameters import agent_uuid
from api.http.problems import documented
from api.resources import Injected
from services.agents.queries import get_agent
from services.calls.recent import CallHour, Count, RecentCalls, recent_calls
from services.storage.database import in_transaction


class CountAnswer(BaseModel):
    """Some calls."""

    model_config = ConfigDict(frozen=True)

    calls: int = Field(description="Calls that ended, also those that failed or were refused because of a limit.")
    agent_failures: int = Field(description="The agent answered with a server error, or broke its answer off.")
    gateway_failures: int = Field(description="The gateway got no answer, or nothing was Ready to give one.")
    mean_seconds: float | None = Field(description="Mean time to the first byte of an answer; null without answers.")
    longest_seconds: float | None = Field(description="The longest such time; null without answers.")

    @classmethod
    def of(cls, count: Count, **more: object) -> Self:
        """The answer for a count."""
        return cls.model_validate(
            {
                "calls": count.calls,
                "agent_failures": count.agent_failures,
                "gateway_failures": count.gateway_failures,
                "mean_seconds": count.mean_seconds,
                "longest_seconds": count.longest_seconds if count.answered else None,
                **more,
            }
        )


class MinuteAnswer(CountAnswer):
    """The calls of one minute."""

    minutes_ago: int = Field(description="0: the minute that runs.")


class VersionCallsAnswer(CountAnswer):
    """The calls to one deployment."""

    deployment_id: str | None = Field(description="Null for the legacy address, and where nothing served.")


class CallsAnswer(BaseModel):
    """The calls of an agent within the last hour."""

    model_config = ConfigDict(frozen=True)

    agent_id: UUID
    since: datetime = Field(description="The begin of the first minute, by the database's clock.")
    until: datetime = Field(description="When the counts were read. Calls of the last ten seconds may be missing.")
    is_complete: bool = Field(
        description="False if an API process had too many agents and versions at once to count all of them apart."
    )
    total: CountAnswer
    deployments: list[VersionCallsAnswer] = Field(description="Those that had calls.")
    minutes: list[MinuteAnswer] = Field(description="The last 60 minutes, the oldest first.")

    @classmethod
    def of(cls, agent_id: UUID, recent: RecentCalls) -> Self:
        """The answer for an agent."""
        hour: CallHour = recent.of_agent(agent_id)
        return cls(
            agent_id=agent_id,
            since=hour.since,
            until=hour.until,
            is_complete=recent.is_complete,
            total=CountAnswer.of(hour.total),
            deployments=[
                VersionCallsAnswer.of(recent.of_version(agent_id, each).total, deployment_id=each or None)
                for each in recent.versions_of(agent_id)
            ],
            minutes=[
                MinuteAnswer.of(count, minutes_ago=len(hour.minutes) - 1 - index)
                for index, count in enumerate(hour.minutes)
            ],
        )


@get("/agents/{agent_id:str}/calls", opt=READ, operation_id="list_calls", responses=documented(404))
async def read_calls(agent_id: FromPath[str], resources: Injected) -> CallsAnswer:
    """Calls and failures of the agent within the last hour, over all API processes, by minute and by deployment."""
    uuid = agent_uuid(agent_id)

    async def work(session: AsyncSession) -> RecentCalls:
        await get_agent(session, uuid)
        return await recent_calls(session, [uuid])

    return CallsAnswer.of(uuid, await in_transaction(resources.reads, work))


ROUTES = [read_calls]
