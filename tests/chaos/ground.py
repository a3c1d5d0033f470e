"""Servers that may be broken: Podium's own, private to the chaos tests, with a database for each test."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import aio_pika
from pydantic import SecretStr
from pydantic_core import from_json
from sqlalchemy import NullPool, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from contracts import topology
from podium.servers import PrivateServer, Servers
from podium.servers.process import GuardedProcess
from services.settings import Settings
from services.storage.database import Sessions, async_url
from services.storage.migrate import migrate
from tests.integration.servers.process_tree import GUARD, tree
from tests.support.processes import worker_process
from tests.support.waiting import eventually
from workers.amqp.topology import declare

EVENTS_QUEUE = "chaos.events"
# Without the janitor, who would find that the pods of these tests do not exist.
MESSENGERS = "registrar relay drainer"
# A quorum queue of RabbitMQ 3.10 finds no leader again if its node is killed in its first second or so.
SETTLED_SECONDS = 2.5


@dataclass(frozen=True)
class Ground:
    """Both servers, and how long their queues have been there."""

    postgres: PrivateServer
    rabbitmq: PrivateServer
    declared_at: float

    async def settled(self) -> None:
        """Wait until the broker's node may be killed."""
        await asyncio.sleep(max(0.0, self.declared_at + SETTLED_SECONDS - monotonic()))

    async def mended(self) -> None:
        """Both servers run, whatever was done to them."""
        for server in (self.postgres, self.rabbitmq):
            if server.pid is not None:
                thaw(server)
            await server.start()


@dataclass(frozen=True)
class Field:
    """One test's database on the ground, and its worker processes."""

    ground: Ground
    settings: Settings
    sessions: Sessions
    folder: Path

    @property
    def database(self) -> str:
        """The name of this test's database."""
        name = make_url(self.settings.database_url.get_secret_value()).database
        assert name is not None
        return name

    @asynccontextmanager
    async def worker(self, names: str = MESSENGERS, **more: str) -> AsyncIterator[GuardedProcess]:
        """A `podium worker` that tells what it does in JSON."""
        told = {"PODIUM_LOG_LEVEL": "info", "PODIUM_LOG_FORMAT": "json", **more}
        async with worker_process(self.settings, self.folder, names, **told) as process:
            yield process

    def told(self, action: str) -> list[dict[str, Any]]:
        """What all workers have logged under this action."""
        lines = [line for log in self.folder.glob("worker-*.log") for line in log.read_bytes().splitlines()]
        # A killed process leaves half a line.
        whole = [from_json(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
        return [line for line in whole if line.get("action") == action]

    async def until_told(self, action: str, *, seconds: float = 20, **facts: object) -> None:
        """Wait until some worker has logged this."""

        async def found() -> bool:
            return any(facts.items() <= line.items() for line in self.told(action))

        await eventually(found, f"{action} {facts}", seconds=seconds)


@asynccontextmanager
async def prepared(servers: Servers) -> AsyncIterator[Ground]:
    """The ground with Podium's queues on it and a queue that keeps events."""
    assert servers.postgres is not None
    assert servers.rabbitmq is not None
    await declare(Settings(amqp_url=SecretStr(servers.amqp_url)))
    async with await aio_pika.connect(servers.amqp_url) as broker:
        channel = await broker.channel()
        events = await channel.declare_queue(EVENTS_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        await events.bind(topology.EVENTS_EXCHANGE, "#")
    yield Ground(servers.postgres, servers.rabbitmq, monotonic())


@asynccontextmanager
async def fresh(ground: Ground, folder: Path, name: str) -> AsyncIterator[Field]:
    """A new database and empty queues; both servers run again afterwards."""
    await ground.mended()
    url = make_url(ground.postgres.url)
    await alone(url.render_as_string(hide_password=False), f'CREATE DATABASE "{name}"')
    engine = create_async_engine(
        async_url(str(url.set(database=name).render_as_string(hide_password=False))), poolclass=NullPool
    )
    await migrate(engine)
    async with await aio_pika.connect(ground.rabbitmq.url) as broker:
        channel = await broker.channel()
        for queue in (topology.REGISTRATIONS_QUEUE, topology.PARKED_QUEUE, EVENTS_QUEUE):
            await (await channel.get_queue(queue, ensure=False)).purge()
    settings = Settings(
        database_url=SecretStr(engine.url.set(drivername="postgresql").render_as_string(hide_password=False)),
        amqp_url=SecretStr(ground.rabbitmq.url),
        secret_key=SecretStr("a test's secret key"),
    )
    try:
        yield Field(ground, settings, Sessions(engine), folder)
    finally:
        await ground.mended()
        await engine.dispose()


def freeze(server: PrivateServer) -> None:
    """Stop every process of a server, as a machine does that hangs: connections stay, answers do not come."""
    _signal(server, signal.SIGSTOP)


def thaw(server: PrivateServer) -> None:
    """Let it go on."""
    _signal(server, signal.SIGCONT)


def _signal(server: PrivateServer, number: signal.Signals) -> None:
    for pid, name in tree(server).items():
        if name != GUARD and "python" not in name:
            os.kill(pid, number)


async def ended_within(process: GuardedProcess, seconds: float) -> int:
    """The exit code of a process that ends by itself."""
    async with asyncio.timeout(seconds):
        return await process.ended()


async def alone(url: str, *statements: str) -> None:
    """Run what cannot run inside a transaction."""
    engine = create_async_engine(async_url(url), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()
