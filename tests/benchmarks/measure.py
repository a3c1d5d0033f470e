"""The measurements. Each uses servers without other load and returns numbers."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from uuid import UUID, uuid4

import aio_pika
from aio_pika import DeliveryMode, Message
from pydantic import SecretStr
from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from contracts import topology
from podium.servers import Servers
from services.domain.caller import Caller
from services.promotion.promote import promote
from services.registration.batch import Incoming, read_message, register_batch
from services.registration.parked import Envelope
from services.settings import Settings
from services.storage.database import Sessions, async_url, in_transaction, make_engine
from services.storage.migrate import migrate
from tests.benchmarks.fleet import PER_AGENT, announcements
from tests.benchmarks.load import PEERS
from tests.support.processes import ROOT, environment, worker_process
from workers.amqp.topology import declare

PUBLISHED_AT_A_TIME = 500
MEASURE_SECONDS = 240
WARM_UP = 20


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

    async def registrations_per_second(self, agents: int) -> float:
        """The rate of one worker process with a backlog of announcements."""
        count = agents * PER_AGENT
        async with self.fresh() as settings:
            await self._publish(settings, agents)
            engine = make_engine(settings, application_name="bench", pool_size=1)
            query = text(
                "SELECT count(*) AS n, extract(epoch FROM max(received_at) - min(received_at)) AS seconds "
                "FROM registrations"
            )
            async with worker_process(settings, self.folder, "registrar"), engine.connect() as connection:
                async with asyncio.timeout(MEASURE_SECONDS):
                    while (row := (await connection.execute(query)).one()).n < count:
                        await connection.rollback()
                        await asyncio.sleep(0.2)
            await engine.dispose()
        return count / float(row.seconds)

    async def peer_registrations_per_second(self, peer: str, agents: int) -> float:
        """The rate of a peer program with the same backlog."""
        async with self.fresh() as settings:
            await self._publish(settings, agents)
            seconds = await self._run_peer(settings, peer, str(agents * PER_AGENT))
        return agents * PER_AGENT / seconds

    async def promotes_per_second(self, sessions: int, each: int) -> float:
        """The rate of promotes as direct service calls; each session has its own agent."""
        async with self.fresh() as settings:
            engine = make_engine(settings, application_name="bench", pool_size=sessions)
            factory = Sessions(engine)
            batch = [_incoming(name, body) for name, body in announcements(sessions)]
            await in_transaction(factory, lambda session: register_batch(session, batch))
            async with engine.connect() as connection:
                names = {row.id: row.name for row in await connection.execute(text("SELECT id, name FROM agents"))}

            async def work(agent_id: UUID, times: int) -> None:
                for number in range(times):
                    target = f"{names[agent_id]}-v{number % 2}"
                    await in_transaction(factory, partial(_promote, agent_id, target))

            await asyncio.gather(*(work(agent, 2) for agent in names))
            began = perf_counter()
            await asyncio.gather(*(work(agent, each) for agent in names))
            seconds = perf_counter() - began
            await engine.dispose()
        return sessions * each / seconds

    async def commits_per_second(self, sessions: int, count: int) -> float:
        """The rate of single-row commits on the same database with the same concurrency."""
        async with self.fresh() as settings:
            seconds = await self._run_peer(
                settings, "single_row_commits", str(sessions), str(count), driver="postgresql"
            )
        return count / seconds

    async def event_latencies_ms(self, samples: int) -> list[float]:
        """The milliseconds from a publish to the `promoted` event at a consumer, one at a time on an idle system."""
        async with self.fresh() as settings, worker_process(settings, self.folder):
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

    async def _publish(self, settings: Settings, agents: int) -> None:
        connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
        async with connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(topology.REGISTRATIONS_EXCHANGE)
            bodies = announcements(agents)
            for start in range(0, len(bodies), PUBLISHED_AT_A_TIME):
                part = bodies[start : start + PUBLISHED_AT_A_TIME]
                await asyncio.gather(
                    *(exchange.publish(_message(body), topology.registration_key(name)) for name, body in part)
                )

    async def _run_peer(
        self, settings: Settings, peer: str, *arguments: str, driver: str = "postgresql+asyncpg"
    ) -> float:
        url = make_url(settings.database_url.get_secret_value()).set(drivername=driver)
        env = environment(settings, PEER_DATABASE_URL=url.render_as_string(hide_password=False))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"{PEERS}.{peer}", *arguments, cwd=ROOT, env=env, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await asyncio.wait_for(process.communicate(), MEASURE_SECONDS)
        return float(printed)

    async def _empty_queues(self, settings: Settings) -> None:
        connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
        async with connection:
            channel = await connection.channel()
            for queue in (topology.REGISTRATIONS_QUEUE, topology.PARKED_QUEUE):
                await channel.queue_delete(queue)
        await declare(settings)


async def _promote(agent_id: UUID, target: str, session: AsyncSession) -> None:
    await promote(session, agent_id, target, Caller(actor="bench"))


def _message(body: dict[str, object]) -> Message:
    return Message(to_json(body), delivery_mode=DeliveryMode.PERSISTENT)


def _incoming(name: str, body: dict[str, object]) -> Incoming:
    return read_message(Envelope(topology.registration_key(name), to_json(body)))
