"""The calls that tests of the services make, each in its own transaction."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.agents import commands as lifecycle
from services.agents.commands import AgentChange, NewDeployment
from services.domain.caller import Caller
from services.domain.state import AgentSnapshot, DeploymentState
from services.errors import PodiumError
from services.promotion import promote as promotion
from services.promotion import rollback
from services.registration.batch import Decided, Incoming, register_batch
from services.routing.routes import READ_ROUTES, Route, RouteKey, arguments, read_routes_of_conversations, route_of
from services.storage.database import Sessions, in_transaction
from services.storage.models import Agent, Base, Deployment, OutboxEvent, Parked, Promotion, Registration
from tests.support.factories import incoming

T = TypeVar("T")

NAME = "support-bot"
AMY = Caller(actor="amy")

_FAIL = text("""
WITH failed AS (
    UPDATE deployments SET status = 'Failed', status_reason = 'probe failed', status_changed_at = clock_timestamp()
    WHERE id = :id RETURNING id)
UPDATE agents SET status = 'Failed', status_reason = 'probe failed'
WHERE production_deployment_id = (SELECT id FROM failed)
""")

_WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


@dataclass(frozen=True)
class World:
    """One database, and the calls that tests make on it."""

    sessions: Sessions

    async def do(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """The result of `work`, committed."""
        return await in_transaction(self.sessions, work)

    @asynccontextmanager
    async def uncommitted(self) -> AsyncIterator[AsyncSession]:
        """A transaction that commits at the end of the block and holds its locks until then."""
        async with self.sessions() as session, session.begin():
            yield session

    async def until_blocked(self, others: int = 1) -> None:
        """Return once this many transactions wait for a lock; raises after ten seconds."""
        async with asyncio.timeout(10), self.sessions() as session:
            while await session.scalar(_WAITING) != others:
                await session.rollback()
                await asyncio.sleep(0.005)

    async def decide(self, *batch: Incoming) -> list[Decided]:
        """The decisions about the messages of this batch."""
        return await self.do(lambda session: register_batch(session, batch))

    async def register(self, *batch: Incoming) -> list[str]:
        """The names of the outcomes of this batch."""
        return [type(each.outcome).__name__ for each in await self.decide(*batch)]

    async def arrive(self, name: str = NAME, **fields: Any) -> str:
        """The outcome of one new message."""
        (outcome,) = await self.register(incoming(name, **fields))
        return outcome

    async def promote(self, deployment_id: str, name: str = NAME, *, caller: Caller = AMY) -> AgentSnapshot:
        """The agent after an explicit promote."""
        agent_id = await self.agent_id(name)
        return await self.do(lambda session: promotion.promote(session, agent_id, deployment_id, caller))

    async def roll_back(self, *, to: str | None = None, name: str = NAME, caller: Caller = AMY) -> AgentSnapshot:
        """The agent after a rollback."""
        agent_id = await self.agent_id(name)
        return await self.do(lambda session: rollback.roll_back(session, agent_id, caller, to=to))

    async def create(self, name: str = NAME, *, image: str = "registry/bot:1", **fields: Any) -> DeploymentState:
        """The deployment, created before its pod registers."""
        agent_id, new = await self.agent_id(name), NewDeployment(docker_image=image, **fields)
        return await self.do(lambda session: lifecycle.create_deployment(session, agent_id, new, AMY))

    async def delete(self, deployment_id: str, name: str = NAME, *, force: bool = False) -> None:
        """Delete a preview."""
        agent_id = await self.agent_id(name)
        await self.do(lambda session: lifecycle.delete_deployment(session, agent_id, deployment_id, AMY, force=force))

    async def delete_agent(self, name: str = NAME) -> AgentSnapshot:
        """The agent after its deletion."""
        agent_id = await self.agent_id(name)
        return await self.do(lambda session: lifecycle.delete_agent(session, agent_id, AMY))

    async def change(self, name: str = NAME, **change: Any) -> AgentSnapshot:
        """The agent after a change of its settings."""
        agent_id = await self.agent_id(name)
        return await self.do(lambda session: lifecycle.change_agent(session, agent_id, AgentChange(**change), AMY))

    async def fail(self, deployment_id: str) -> None:
        """Set a deployment Failed, as a verdict does."""
        await self.do(lambda session: session.execute(_FAIL, {"id": deployment_id}))

    async def two_versions(self, name: str = NAME) -> None:
        """A new agent with `<name>.v1` in production and `<name>.v2` as a Ready preview."""
        await self.register(incoming(name, deployment_id=f"{name}.v1"), incoming(name, deployment_id=f"{name}.v2"))

    async def agent(self, name: str = NAME) -> Agent:
        """The newest agent of this name, deleted or not."""
        newest = select(Agent).where(Agent.name == name).order_by(Agent.created_at.desc()).limit(1)
        return await self.do(lambda session: _one(session, newest))

    async def agent_id(self, name: str = NAME) -> UUID:
        """The id of the newest agent of this name."""
        return (await self.agent(name)).id

    async def production(self, name: str = NAME) -> str | None:
        """The deployment in production."""
        return (await self.agent(name)).production_deployment_id

    async def deployment(self, deployment_id: str) -> Deployment:
        """The deployment's row."""
        return await self.do(lambda session: _one(session, select(Deployment).where(Deployment.id == deployment_id)))

    async def deployments(self) -> list[Deployment]:
        """All deployments of all agents, by id."""
        return await self.do(lambda session: _all(session, select(Deployment).order_by(Deployment.id)))

    async def ledger(self, name: str = NAME) -> list[Promotion]:
        """The agent's ledger, oldest row first."""
        agent_id = await self.agent_id(name)
        rows = select(Promotion).where(Promotion.agent_id == agent_id).order_by(Promotion.generation)
        return await self.do(lambda session: _all(session, rows))

    async def causes(self, name: str = NAME) -> list[tuple[str, str | None]]:
        """Cause and target of each generation; the legacy address is written as `legacy`."""
        return [
            (row.cause, row.to_deployment_id or ("legacy" if row.to_acp_url else None))
            for row in await self.ledger(name)
        ]

    async def events(self, name: str = NAME) -> list[OutboxEvent]:
        """The agent's events, in order."""
        agent_id = await self.agent_id(name)
        rows = select(OutboxEvent).where(OutboxEvent.agent_id == agent_id).order_by(OutboxEvent.sequence)
        return await self.do(lambda session: _all(session, rows))

    async def event_types(self, name: str = NAME) -> list[str]:
        """The types of the agent's events, as `entity.event`."""
        return [event.type.removeprefix("podium.").removesuffix(".v1") for event in await self.events(name)]

    async def parked(self) -> list[Parked]:
        """The parked messages, oldest first."""
        return await self.do(lambda session: _all(session, select(Parked).order_by(Parked.received_at)))

    async def inbox(self) -> list[Registration]:
        """The rows of the inbox, in order."""
        return await self.do(lambda session: _all(session, select(Registration).order_by(Registration.seq)))

    async def contents(self, *, without: frozenset[str] = frozenset()) -> dict[str, list[str]]:
        """All rows of all tables except these, to compare before and after."""

        async def read(session: AsyncSession) -> dict[str, list[str]]:
            tables = sorted(Base.metadata.tables.keys() - without)
            return {
                table: list(await session.scalars(text(f"SELECT t::text FROM {table} AS t ORDER BY 1")))
                for table in tables
            }

        return await self.do(read)


INBOX = frozenset({"registrations", "parked"})


async def _one(session: AsyncSession, query: Any) -> Any:
    return (await session.scalars(query)).one()


async def _all(session: AsyncSession, query: Any) -> Any:
    return list(await session.scalars(query))


async def settled(work: Awaitable[Any]) -> Any:
    """The result of `work`; a refusal is returned, not raised."""
    try:
        return await work
    except PodiumError as refused:
        return refused


async def read_route(session: AsyncSession, key: RouteKey) -> Route:
    """The route that the gateway would use."""
    connection = await (await session.connection()).get_raw_connection()
    driver: Any = connection.driver_connection
    statement = READ_ROUTES if key.session is None else read_routes_of_conversations()
    rows = await driver.fetch(statement, *arguments([key]))
    return route_of(key, rows[0] if rows else None)
