"""What one registration, promote, rollback, call, event and probe cost: the numbers of docs/capacity.md.

    python -m tests.benchmarks.unit_costs [--seconds 4] [--work "relay" ...]

For each kind of work: milliseconds of CPU of the API or worker process, of PostgreSQL and of RabbitMQ, bytes of
write-ahead log, and statements (round trips), each divided by the number of pieces of work. CPU time depends on the
machine and, by sharing caches and cores, on its other load; bytes and statements do not. A page that changes for the
first time after a checkpoint is logged as a whole, so the bytes of a short measurement are rather too high.
"""

import argparse
import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import uvloop
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from podium.servers import private_servers
from podium.servers.ports import free_ports
from services.settings import Settings
from services.storage.database import make_engine
from tests.benchmarks.contenders import Stage, api, quieter, stage_of
from tests.benchmarks.fleet import PER_AGENT
from tests.benchmarks.load import Contender
from tests.benchmarks.measure import Bench, worker_from
from tests.benchmarks.meter import POSTGRES, RABBITMQ, Cost, Meter, open_meter
from tests.benchmarks.rows import console
from tests.support.processes import ROOT
from tests.support.waiting import eventually

SECONDS = 4.0
WARM_UP_SECONDS = 1.0
BACKLOG_AGENTS = 300
STREAMS = 20
PROBE_INTERVAL_SECONDS = "1"
PATIENCE_SECONDS = 120
EVENTS = 4000
POLL_SECONDS = 0.1
PROGRAM = "API or worker"
_EVENT = b"\nid:"
_PROBES = re.compile(r"^podium_probes_total{[^}]*} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Scene:
    """The servers, a meter of what they use, and an API with its agents."""

    stage: Stage
    meter: Meter
    settings: Settings
    podium: Contender
    seconds: float


async def over_http(scene: Scene, kind: str, connections: int) -> Cost:
    """Requests on this many connections: alone on one, in groups on more."""
    await scene.podium.turn(kind, connections, WARM_UP_SECONDS, None)
    before = await scene.meter.sample(**{PROGRAM: scene.podium.pid})
    turn = await scene.podium.turn(kind, connections, scene.seconds, None)
    assert not turn.failures
    return Cost(turn.answers, before, await scene.meter.sample(**{PROGRAM: scene.podium.pid}))


async def over_amqp(scene: Scene) -> Cost:
    """Announcements of a backlog, in batches of one worker."""
    bench = scene.stage.bench
    async with bench.fresh() as settings:
        await bench.publish(settings, BACKLOG_AGENTS)
        async with _connection(settings) as connection, worker_from(ROOT, settings, bench.folder) as worker:
            count = "SELECT count(*) FROM registrations"
            first = await _at_least(connection, count, 1)
            before = await scene.meter.sample(**{PROGRAM: worker.pid})
            last = await _at_least(connection, count, BACKLOG_AGENTS * PER_AGENT)
            return Cost(last - first, before, await scene.meter.sample(**{PROGRAM: worker.pid}))


async def published(scene: Scene) -> Cost:
    """Announcements that RabbitMQ takes into its quorum queue and confirms, from one publisher that is not Podium."""
    bench = scene.stage.bench
    async with bench.fresh() as settings:
        before = await scene.meter.sample(**{PROGRAM: None})
        await bench.publish(settings, BACKLOG_AGENTS)
        return Cost(BACKLOG_AGENTS * PER_AGENT, before, await scene.meter.sample(**{PROGRAM: None}))


async def relayed(scene: Scene) -> Cost:
    """Events of a backlog, published by a relay."""
    left = "SELECT count(*) FROM outbox WHERE published_at IS NULL"
    done = "SELECT count(*) FROM outbox WHERE published_at IS NOT NULL"
    async with _connection(scene.settings) as connection:
        while (await connection.execute(text(left))).scalar_one() < EVENTS:
            await scene.podium.turn("promotes", 32, 1.0, None)
        backlog = (await connection.execute(text(left))).scalar_one()
        already = (await connection.execute(text(done))).scalar_one()
        async with worker_from(ROOT, scene.settings, scene.stage.bench.folder, "relay") as worker:
            first = await _at_least(connection, done, already + 1)
            before = await scene.meter.sample(**{PROGRAM: worker.pid})
            last = await _at_least(connection, done, already + backlog)
            return Cost(last - first, before, await scene.meter.sample(**{PROGRAM: worker.pid}))


async def streamed(scene: Scene, streams: int) -> Cost:
    """Events delivered to streams of an API process, while another one makes the promotes that they tell of."""
    async with quieter(scene.stage, scene.settings, scene.podium) as second, aiohttp.ClientSession() as client:
        url = f"http://{second.jobs['forwards']['host']}:{second.jobs['forwards']['port']}/events"
        seen = [0] * streams
        readers = [asyncio.create_task(_read(client, url, seen, number)) for number in range(streams)]
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not all(seen):  # every stream has begun
                    await scene.podium.turn("promotes", 1, 0.1, None)
            before, first = await scene.meter.sample(**{PROGRAM: second.pid}), sum(seen)
            await scene.podium.turn("promotes", 32, scene.seconds, None)
            await eventually(_still(seen), "the streams have delivered all events")
            return Cost(sum(seen) - first, before, await scene.meter.sample(**{PROGRAM: second.pid}))
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


async def _read(client: aiohttp.ClientSession, url: str, seen: list[int], number: int) -> None:
    async with client.get(url, timeout=aiohttp.ClientTimeout(total=None)) as response:
        rest = b"\n"
        async for chunk in response.content.iter_any():
            rest += chunk
            seen[number] += rest.count(_EVENT)
            rest = rest[-len(_EVENT) + 1 :]


def _still(seen: list[int]) -> Callable[[], Awaitable[bool]]:
    async def still() -> bool:
        before = sum(seen)
        await asyncio.sleep(0.3)
        return before == sum(seen)

    return still


async def probed(scene: Scene) -> Cost:
    """Health probes of a janitor; the agents' pods answer at once."""
    port = free_ports(["worker"])["worker"]
    variables = {"PODIUM_PROBE_INTERVAL": PROBE_INTERVAL_SECONDS, "PODIUM_WORKER_PORT": str(port)}
    async with (
        worker_from(ROOT, scene.settings, scene.stage.bench.folder, "janitor", **variables) as worker,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        await eventually(lambda: _has_probed(client), "the janitor probes")
        await asyncio.sleep(WARM_UP_SECONDS)
        before, first = await scene.meter.sample(**{PROGRAM: worker.pid}), await _probes(client)
        await asyncio.sleep(scene.seconds)
        last = await _probes(client)
        return Cost(last - first, before, await scene.meter.sample(**{PROGRAM: worker.pid}))


async def _has_probed(client: aiohttp.ClientSession) -> bool:
    try:
        return await _probes(client) > 0
    except aiohttp.ClientError:
        return False


async def _probes(client: aiohttp.ClientSession) -> int:
    async with client.get("/metrics") as response:
        return sum(int(float(number)) for number in _PROBES.findall(await response.text()))


@asynccontextmanager
async def _connection(settings: Settings) -> AsyncIterator[AsyncConnection]:
    engine = make_engine(settings, application_name="bench", pool_size=1)
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        yield connection
    await engine.dispose()


async def _at_least(connection: AsyncConnection, query: str, count: int) -> int:
    """The count of this query as soon as it is as large."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (found := int((await connection.execute(text(query))).scalar_one())) < count:
            await asyncio.sleep(POLL_SECONDS)
    return found


Measure = Callable[[Scene], Awaitable[Cost]]
WORK: dict[str, Measure] = {
    "registration, AMQP, in batches": over_amqp,
    "registration, HTTP, alone": lambda scene: over_http(scene, "registrations", 1),
    "registration, HTTP, 32 at a time": lambda scene: over_http(scene, "registrations", 32),
    "promote, alone": lambda scene: over_http(scene, "promotes", 1),
    "promote, 32 at a time": lambda scene: over_http(scene, "promotes", 32),
    "rollback, alone": lambda scene: over_http(scene, "rollbacks", 1),
    "rollback, 32 at a time": lambda scene: over_http(scene, "rollbacks", 32),
    "call forwarded, alone": lambda scene: over_http(scene, "forwards", 1),
    "call forwarded, 32 at a time": lambda scene: over_http(scene, "forwards", 32),
    "read of an agent, 32 at a time": lambda scene: over_http(scene, "reads", 32),
    "event published by the relay": relayed,
    "event to one stream": lambda scene: streamed(scene, 1),
    f"event to each of {STREAMS} streams": lambda scene: streamed(scene, STREAMS),
    "probe": probed,
    "message into the queue, confirmed": published,
}


async def _measure(folder: Path, work: list[str], seconds: float) -> dict[str, Cost]:
    found: dict[str, Cost] = {}
    async with private_servers(folder / "servers") as servers:
        bench = Bench(servers, folder)
        async with open_meter(bench) as meter, stage_of(bench) as stage, bench.fresh() as settings:
            variables = {"PODIUM_PROBE_INTERVAL": PROBE_INTERVAL_SECONDS}
            async with api(stage, settings, "podium", ROOT, **variables) as podium:
                scene = Scene(stage, meter, settings, podium, seconds)
                for name in work:
                    found[name] = await WORK[name](scene)
                    console.print(f"{name}: {found[name].per_second:,.0f}/s", highlight=False)
    return found


def _table(found: dict[str, Cost]) -> Table:
    table = Table(title="For each piece of work: CPU in ms, bytes of WAL, statements")
    for heading in ("work", "rate", PROGRAM, POSTGRES, RABBITMQ, "WAL", "statements"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for name, cost in found.items():
        cpu = (f"{cost.cpu_ms(program):.3f}" for program in (PROGRAM, POSTGRES, RABBITMQ))
        wal, statements = f"{cost.wal_bytes:,.0f}", f"{cost.statements:.2f}"
        table.add_row(name, f"{cost.per_second:,.0f}/s", *cpu, wal, statements)
    return table


def main(work: list[str], seconds: float) -> None:
    """Measure on private servers and print the costs."""
    with tempfile.TemporaryDirectory(prefix="podium-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' unprivileged account must be able to enter it
        console.print(_table(uvloop.run(_measure(folder, work, seconds))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what pieces of work cost.")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--work", nargs="*", choices=tuple(WORK), default=list(WORK))
    options = parser.parse_args()
    main(options.work, options.seconds)
