"""A common implementation: a FastStream handler with one ORM session per message.

Handles COUNT messages and prints the seconds from the first to the last commit. It stores agent, deployment and first
promotion, but has no inbox, ledger, outbox and order checks: less work than Podium.
"""

import asyncio
import os
import sys
from time import perf_counter
from uuid import UUID, uuid4

from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.schemas import QueueType
from pydantic import BaseModel
from sqlalchemy import ForeignKey, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Handlers that run at the same time, each with its own connection. More were not faster.
CONCURRENCY = 10


class Base(DeclarativeBase):
    """The tables of this peer."""


class Agent(Base):
    """One agent."""

    __tablename__ = "peer_agents"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(unique=True)
    production_deployment_id: Mapped[str | None]


class Deployment(Base):
    """One version."""

    __tablename__ = "peer_deployments"

    id: Mapped[str] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(ForeignKey("peer_agents.id"))
    acp_url: Mapped[str]
    status: Mapped[str]
    facts: Mapped[dict[str, object]] = mapped_column(JSONB)


class Message(BaseModel):
    """The fields of an announcement that this peer uses."""

    name: str
    acp_url: str
    registration_metadata: dict[str, object]


async def main(count: int) -> None:
    """Handle `count` messages."""
    engine = create_async_engine(os.environ["PEER_DATABASE_URL"], pool_size=CONCURRENCY, max_overflow=0)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    broker = RabbitBroker(os.environ["PODIUM_AMQP_URL"], default_channel=Channel(CONCURRENCY), logger=None)
    queue = RabbitQueue("podium.registrations", queue_type=QueueType.QUORUM, durable=True, declare=False)
    times: list[float] = []
    done = asyncio.Event()

    @broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
    async def register(message: Message) -> None:
        facts = message.registration_metadata
        async with sessions() as session, session.begin():
            agent = await session.scalar(select(Agent).where(Agent.name == message.name).with_for_update())
            if agent is None:
                agent = Agent(name=message.name)
                session.add(agent)
                await session.flush()
            deployment = await session.get(Deployment, str(facts["deployment_id"]))
            if deployment is None:
                deployment = Deployment(id=str(facts["deployment_id"]), agent_id=agent.id)
                session.add(deployment)
            deployment.acp_url, deployment.status, deployment.facts = message.acp_url, "Ready", facts
            if agent.production_deployment_id is None:
                agent.production_deployment_id = deployment.id
        times.append(perf_counter())
        if len(times) >= count:
            done.set()

    async with broker:
        await broker.start()
        await done.wait()
    await engine.dispose()
    sys.stdout.write(f"{times[-1] - times[0]}\n")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
