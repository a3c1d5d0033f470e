"""A common implementation of the HTTP API: Litestar with one SQLAlchemy ORM session per request, under uvicorn.

Argument: the port that it listens on. It stores agents, deployments and which one is in production, and asks the target
of a rollback whether it lives, but has no inbox, ledger, outbox and order checks: less work than Podium.
"""

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import uvicorn
from litestar import Litestar, get, post
from litestar.datastructures import State
from litestar.exceptions import ClientException, NotFoundException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import DateTime, ForeignKey, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as insert_row
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

POOL_SIZE = 10


class Base(DeclarativeBase):
    """The tables of this peer."""


class Agent(Base):
    """One agent."""

    __tablename__ = "peer_agents"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str] = mapped_column(default="")
    docker_image: Mapped[str | None]
    status: Mapped[str] = mapped_column(default="Ready")
    status_reason: Mapped[str | None]
    acp_type: Mapped[str] = mapped_column(default="async")
    acp_url: Mapped[str | None]
    registration_metadata: Mapped[dict[str, object] | None] = mapped_column(JSONB)
    production_deployment_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Deployment(Base):
    """One version."""

    __tablename__ = "peer_deployments"

    id: Mapped[str] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(ForeignKey("peer_agents.id"))
    acp_url: Mapped[str]
    status: Mapped[str]
    is_production: Mapped[bool] = mapped_column(default=False)
    facts: Mapped[dict[str, object]] = mapped_column(JSONB)


class Announcement(BaseModel):
    """The fields of an announcement that this peer uses."""

    name: str
    acp_url: str
    description: str = ""
    registration_metadata: dict[str, object]


class AgentAnswer(BaseModel):
    """An agent."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    description: str
    docker_image: str | None
    status: str
    status_reason: str | None
    acp_type: str
    acp_url: str | None
    registration_metadata: dict[str, object] | None
    production_deployment_id: str | None
    created_at: datetime
    updated_at: datetime


class RollbackRequest(BaseModel):
    """Where to go back to."""

    to: str


@post("/agents/register", status_code=200)
async def register(data: Announcement, state: State) -> AgentAnswer:
    """Create or update an agent and one version of it."""
    facts, now = data.registration_metadata, datetime.now(UTC)
    async with _session(state) as session, session.begin():
        insertion = insert_row(Agent).values(name=data.name, id=uuid4(), created_at=now, updated_at=now)
        await session.execute(insertion.on_conflict_do_nothing())
        agent = await session.scalar(select(Agent).where(Agent.name == data.name).with_for_update())
        assert agent is not None
        agent.description, agent.updated_at = data.description, now
        deployment = await session.get(Deployment, str(facts["deployment_id"]))
        if deployment is None:
            deployment = Deployment(id=str(facts["deployment_id"]), agent_id=agent.id)
            session.add(deployment)
        deployment.acp_url, deployment.status, deployment.facts = data.acp_url, "Ready", facts
        if agent.production_deployment_id in {None, deployment.id}:
            _put_into_production(agent, deployment)
    return AgentAnswer.model_validate(agent)


@post("/agents/{agent_id:uuid}/deployments/{deployment_id:str}/promote", status_code=200)
async def promote(agent_id: UUID, deployment_id: str, state: State) -> AgentAnswer:
    """Put a version into production."""
    return await _promoted(state, agent_id, deployment_id)


@post("/agents/{agent_id:uuid}/rollback", status_code=200)
async def roll_back(agent_id: UUID, data: RollbackRequest, state: State) -> AgentAnswer:
    """Go back to a version, which must answer a probe."""
    async with _session(state) as session:
        target = await session.get(Deployment, data.to)
    if target is None or target.agent_id != agent_id:
        raise NotFoundException
    client: httpx.AsyncClient = state.client
    if not (await client.get(f"{target.acp_url}/healthz")).is_success:
        raise ClientException
    return await _promoted(state, agent_id, data.to)


async def _promoted(state: State, agent_id: UUID, deployment_id: str) -> AgentAnswer:
    async with _session(state) as session, session.begin():
        agent = await session.scalar(select(Agent).where(Agent.id == agent_id).with_for_update())
        target = await session.get(Deployment, deployment_id)
        if agent is None or target is None or target.agent_id != agent_id:
            raise NotFoundException
        if agent.production_deployment_id is not None and agent.production_deployment_id != deployment_id:
            before = await session.get(Deployment, agent.production_deployment_id)
            if before is not None:
                before.is_production = False
        _put_into_production(agent, target)
        agent.updated_at = datetime.now(UTC)
    return AgentAnswer.model_validate(agent)


def _put_into_production(agent: Agent, deployment: Deployment) -> None:
    deployment.is_production = True
    agent.production_deployment_id, agent.acp_url = deployment.id, deployment.acp_url


@get("/agents/{agent_id:uuid}")
async def read_agent(agent_id: UUID, state: State) -> AgentAnswer:
    """One agent."""
    async with _session(state) as session:
        agent = await session.get(Agent, agent_id)
    if agent is None:
        raise NotFoundException
    return AgentAnswer.model_validate(agent)


@get("/agents")
async def read_agents(state: State, limit: int = 50) -> list[AgentAnswer]:
    """The newest agents."""
    async with _session(state) as session:
        agents = await session.scalars(select(Agent).order_by(Agent.created_at.desc()).limit(limit))
        return [AgentAnswer.model_validate(agent) for agent in agents]


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
    """One engine and one client for all requests."""
    engine = create_async_engine(os.environ["PEER_DATABASE_URL"], pool_size=POOL_SIZE, max_overflow=0)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with httpx.AsyncClient() as client:
        app.state.client = client
        yield
    await engine.dispose()


def _session(state: State) -> AsyncSession:
    return cast("async_sessionmaker[AsyncSession]", state.sessions)()


def app() -> Litestar:
    """The application."""
    handlers: list[Any] = [register, promote, roll_back, read_agent, read_agents]
    return Litestar(handlers, lifespan=[lifespan], logging_config=None, openapi_config=None)


if __name__ == "__main__":
    uvicorn.run(app(), host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
