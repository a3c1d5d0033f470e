"""Private servers that the chaos tests may break, with a database for each test."""

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
# Without the janitor: it would set the deployments of these tests Failed, because their pods do not exist.
MESSAGE_WORKERS = "registrar relay drainer"
# RabbitMQ 3.10: if the node is killed about a second after a quorum queue was declared, the queue elects no leader.
SETTLE_SECONDS = 2.5


@dataclass(frozen=True)
class ServerPair:
    """Both servers, and the time at which the queues were declared."""

    postgres: PrivateServer
    rabbitmq: PrivateServer
    declared_at: float

    async def settled(self) -> None:
        """Wait until the broker's node can be killed safely."""
        await asyncio.sleep(max(0.0, self.declared_at + SETTLE_SECONDS - monotonic()))

    async def repair(self) -> None:
        """Resume and start both servers."""
        for server in (self.postgres, self.rabbitmq):
            if server.pid is not None:
                thaw(server)
            await server.start()


@dataclass(frozen=True)
class System:
    """One test's database, settings and worker processes."""

    servers: ServerPair
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
    async def worker(self, names: str = MESSAGE_WORKERS, **more: str) -> AsyncIterator[GuardedProcess]:
        """A `podium worker` process that logs JSON."""
        variables = {"PODIUM_LOG_LEVEL": "info", "PODIUM_LOG_FORMAT": "json", **more}
        async with worker_process(self.settings, self.folder, names, **variables) as process:
            yield process

    def logged(self, action: str) -> list[dict[str, Any]]:
        """The log lines of all workers with this action."""
        lines = [line for log in self.folder.glob("worker-*.log") for line in log.read_bytes().splitlines()]
        # A killed process may leave an incomplete line.
        complete = [from_json(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
        return [line for line in complete if line.get("action") == action]

    async def until_logged(self, action: str, *, seconds: float = 20, **fields: object) -> None:
        """Wait until a worker has logged this action with these fields."""

        async def found() -> bool:
            return any(fields.items() <= line.items() for line in self.logged(action))

        await eventually(found, f"{action} {fields}", seconds=seconds)


@asynccontextmanager
async def prepared_servers(servers: Servers) -> AsyncIterator[ServerPair]:
    """The servers with Podium's queues and a queue that stores all events."""
    assert servers.postgres is not None
    assert servers.rabbitmq is not None
    await declare(Settings(amqp_url=SecretStr(servers.amqp_url)))
    async with await aio_pika.connect(servers.amqp_url) as broker:
        channel = await broker.channel()
        events = await channel.declare_queue(EVENTS_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        await events.bind(topology.EVENTS_EXCHANGE, "#")
    yield ServerPair(servers.postgres, servers.rabbitmq, monotonic())


@asynccontextmanager
async def new_system(servers: ServerPair, folder: Path, name: str) -> AsyncIterator[System]:
    """A new database and empty queues; afterwards both servers are running again."""
    await servers.repair()
    url = make_url(servers.postgres.url)
    await run_outside_transaction(url.render_as_string(hide_password=False), f'CREATE DATABASE "{name}"')
    engine = create_async_engine(
        async_url(str(url.set(database=name).render_as_string(hide_password=False))), poolclass=NullPool
    )
    await migrate(engine)
    async with await aio_pika.connect(servers.rabbitmq.url) as broker:
        channel = await broker.channel()
        for queue in (topology.REGISTRATIONS_QUEUE, topology.PARKED_QUEUE, EVENTS_QUEUE):
            await (await channel.get_queue(queue, ensure=False)).purge()
    settings = Settings(
        database_url=SecretStr(engine.url.set(drivername="postgresql").render_as_string(hide_password=False)),
        amqp_url=SecretStr(servers.rabbitmq.url),
        secret_key=SecretStr("a test's secret key"),
    )
    try:
        yield System(servers, settings, Sessions(engine), folder)
    finally:
        await servers.repair()
        await engine.dispose()


def freeze(server: PrivateServer) -> None:
    """Stop every process of a server, like a hanging machine: connections stay open, responses do not arrive."""
    _signal(server, signal.SIGSTOP)


def thaw(server: PrivateServer) -> None:
    """Resume the processes of a server."""
    _signal(server, signal.SIGCONT)


def _signal(server: PrivateServer, number: signal.Signals) -> None:
    for pid, name in tree(server).items():
        if name != GUARD and "python" not in name:
            os.kill(pid, number)


async def ended_within(process: GuardedProcess, seconds: float) -> int:
    """Wait for the end of a process; returns its exit code."""
    async with asyncio.timeout(seconds):
        return await process.ended()


async def run_outside_transaction(url: str, *statements: str) -> None:
    """Run statements that cannot run inside a transaction."""
    engine = create_async_engine(async_url(url), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()
