"""The measurements on the queue and in this process. Each uses servers without other load and returns numbers."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from uuid import uuid4

import aio_pika
from aio_pika import DeliveryMode, Message
from pydantic import SecretStr
from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from contracts import topology
from podium.servers import Servers
from podium.servers.process import Command, GuardedProcess, Launch, ProcessContext, start
from services.settings import Settings
from services.storage.database import async_url, make_engine
from services.storage.migrate import migrate
from tests.benchmarks.cpu import cpu_seconds
from tests.benchmarks.fleet import PER_AGENT, announcements
from tests.benchmarks.load import PEERS, load_process
from tests.benchmarks.rows import Figures
from tests.support.processes import ROOT, environment
from workers.amqp.topology import declare

PUBLISHED_AT_A_TIME = 500
PACED_AT_A_TIME = 5
MEASURE_SECONDS = 240
POLL_SECONDS = 0.1
WARM_UP = 20
_DECIDED = text("""
SELECT count(*) AS n, extract(epoch FROM coalesce(max(received_at) - min(received_at), interval '0')) AS seconds
FROM registrations
""")


@dataclass(frozen=True, slots=True)
class Progress:
    """How many announcements are decided, in which time, and the CPU seconds until then."""

    count: int
    seconds: float
    worker_seconds: float
    database_seconds: float


@dataclass(frozen=True)
class Bench:
    """The servers, and the folder for logs."""

    servers: Servers
    folder: Path

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[Settings]:
        """A migrated database and empty queues; the database is dropped afterwards."""
        name = f"bench_{uuid4().hex}"
        admin = create_async_engine(async_url(self.servers.database_url), isolation_level="AUTOCOMMIT")
        async with admin.connect() as connection:
            await connection.execute(text(f"CREATE DATABASE {name}"))
        url = make_url(self.servers.database_url).set(database=name).render_as_string(hide_password=False)
        settings = Settings(
            database_url=SecretStr(url),
            amqp_url=SecretStr(self.servers.amqp_url),
            secret_key=SecretStr("a benchmark's secret key"),
            database_pool_size=64,
        )
        engine = make_engine(settings, application_name="bench", pool_size=1)
        await migrate(engine)
        await engine.dispose()
        await self._empty_queues(settings)
        yield settings
        async with admin.connect() as connection:
            await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        await admin.dispose()

    @property
    def database_pid(self) -> int | None:
        """The process of PostgreSQL, whose children are its backends; None if it is not a private server."""
        return self.servers.postgres.pid if self.servers.postgres else None

    async def registrations(self, agents: int, name: str = "registrations", source: Path = ROOT) -> Figures:
        """The rate of one worker process with a backlog of announcements, and the CPU time of each in ms."""
        count = agents * PER_AGENT
        async with self.fresh() as settings:
            await self.publish(settings, agents)
            engine = make_engine(settings, application_name="bench", pool_size=1)
            autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
            async with worker_from(source, settings, self.folder) as worker, autocommit.connect() as connection:
                began = await self._decided(connection, worker.pid, 1)
                ended = await self._decided(connection, worker.pid, count)
            await engine.dispose()
        taken = ended.count - began.count  # the CPU time of the start does not count
        return {
            name: count / ended.seconds,
            f"{name}_worker_ms": (ended.worker_seconds - began.worker_seconds) * 1000 / taken,
            f"{name}_database_ms": (ended.database_seconds - began.database_seconds) * 1000 / taken,
        }

    async def _decided(self, connection: AsyncConnection, worker: int, count: int) -> Progress:
        """Wait until this many announcements are decided."""
        async with asyncio.timeout(MEASURE_SECONDS):
            while (row := (await connection.execute(_DECIDED)).one()).n < count:
                await asyncio.sleep(POLL_SECONDS)
        return Progress(row.n, float(row.seconds), cpu_seconds(worker), cpu_seconds(self.database_pid))

    async def peer_registrations(self, name: str, peer: str, agents: int) -> Figures:
        """The rate of a peer program with the same backlog."""
        async with self.fresh() as settings:
            await self.publish(settings, agents)
            seconds = await self._run_peer(settings, peer, str(agents * PER_AGENT))
        return {name: agents * PER_AGENT / seconds}

    async def commits(self, sessions: int, seconds: float) -> Figures:
        """The rate of single-row commits on the same database with the same concurrency."""
        async with self.fresh() as settings, load_process("database_limit", peer_environment(settings)) as load:
            await load.do({"kind": "commits"}, sessions, 0.5)
            found = await load.do({"kind": "commits"}, sessions, seconds)
        return {"commits": found["answers"] / found["seconds"]}

    async def event_latencies_ms(self, samples: int) -> list[float]:
        """The milliseconds from a publish to the `promoted` event at a consumer, one at a time on an idle system."""
        async with self.fresh() as settings, worker_from(ROOT, settings, self.folder, ""):
            connection = await aio_pika.connect(self.servers.amqp_url)
            async with connection:
                channel = await connection.channel()
                arrived: asyncio.Queue[float] = asyncio.Queue()
                queue = await channel.declare_queue(exclusive=True)
                await queue.bind(topology.EVENTS_EXCHANGE, "deployment.promoted.*")

                async def keep(_: object) -> None:
                    arrived.put_nowait(perf_counter())

                await queue.consume(keep, no_ack=True)
                exchange = await channel.get_exchange(topology.REGISTRATIONS_EXCHANGE)
                latencies: list[float] = []
                first_of_each = dict(announcements(samples + WARM_UP))
                for name, body in first_of_each.items():
                    began = perf_counter()
                    await exchange.publish(_message(body), topology.registration_key(name))
                    async with asyncio.timeout(30):
                        latencies.append((await arrived.get() - began) * 1000)
                    await asyncio.sleep(0.02)
        return latencies[WARM_UP:]

    async def publish(self, settings: Settings, agents: int, per_second: float | None = None) -> None:
        """Put announcements into the queue, each one confirmed: as fast as possible, or at this rate."""
        at_a_time = PUBLISHED_AT_A_TIME if per_second is None else PACED_AT_A_TIME
        began = perf_counter()
        connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
        async with connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(topology.REGISTRATIONS_EXCHANGE)
            bodies = announcements(agents)
            for first in range(0, len(bodies), at_a_time):
                part = bodies[first : first + at_a_time]
                if per_second is not None:
                    await asyncio.sleep(max(0.0, began + first / per_second - perf_counter()))
                await asyncio.gather(
                    *(exchange.publish(_message(body), topology.registration_key(name)) for name, body in part)
                )

    async def _run_peer(self, settings: Settings, peer: str, *arguments: str) -> float:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"{PEERS}.{peer}", *arguments),
            cwd=ROOT,
            env=peer_environment(settings, "postgresql+asyncpg"),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            printed, _ = await asyncio.wait_for(process.communicate(), MEASURE_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        return float(printed)

    async def _empty_queues(self, settings: Settings) -> None:
        connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
        async with connection:
            channel = await connection.channel()
            for queue in (topology.REGISTRATIONS_QUEUE, topology.PARKED_QUEUE):
                await channel.queue_delete(queue)
        await declare(settings)


def peer_environment(settings: Settings, driver: str = "postgresql") -> dict[str, str]:
    """The environment variables of a peer program."""
    url = make_url(settings.database_url.get_secret_value()).set(drivername=driver)
    return environment(settings, PEER_DATABASE_URL=url.render_as_string(hide_password=False))


@asynccontextmanager
async def worker_from(
    source: Path, settings: Settings, folder: Path, names: str = "registrar", **variables: str
) -> AsyncIterator[GuardedProcess]:
    """A worker process of this source folder, at the default log level."""
    env = environment(settings) | {"PYTHONPATH": str(source), "PYTHONSAFEPATH": "1"} | variables
    env.pop("PODIUM_LOG_LEVEL")
    command = Command([sys.executable, "-m", "podium", "worker", *names.split()], env, source)
    process = await start(Launch(command), ProcessContext(None, folder / f"worker-{uuid4().hex}.log"))
    try:
        yield process
    finally:
        await process.stop()


def _message(body: dict[str, object]) -> Message:
    return Message(to_json(body), delivery_mode=DeliveryMode.PERSISTENT)
