"""What one registration, promote, rollback, call, event and probe cost.

For each kind of work: milliseconds of CPU of the API or worker process, of PostgreSQL and of RabbitMQ, bytes of
write-ahead log, and statements (round trips), each divided by the number of pieces of work. CPU time depends on the
machine and, by sharing caches and cores, on its other load; bytes and statements do not. A page that changes for the
first time after a checkpoint is logged as a whole, so the bytes of a short measurement are rather too high.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp
from sqlalchemy import text

from podium.servers.ports import free_ports
from services.settings import Settings
from tests.benchmarks.contenders import Stage, another, api, stage_of
from tests.benchmarks.fleet import PER_AGENT
from tests.benchmarks.load import Contender
from tests.benchmarks.measure import Bench, worker_from
from tests.benchmarks.meter import PATIENCE_SECONDS, Cost, Meter, at_least, connection_to
from tests.benchmarks.rows import console
from tests.support.processes import ROOT
from tests.support.waiting import eventually

SECONDS = 4.0
WARM_UP_SECONDS = 1.0
BACKLOG_AGENTS = 300
STREAMS = 20
PROBE_INTERVAL_SECONDS = "1"
EVENTS = 4000
# Announcements a second of the worked example.
PACE = 500
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
        async with connection_to(settings) as connection, worker_from(ROOT, settings, bench.folder) as worker:
            count = "SELECT count(*) FROM registrations"
            first = await at_least(connection, count, 1)
            before = await scene.meter.sample(**{PROGRAM: worker.pid})
            last = await at_least(connection, count, BACKLOG_AGENTS * PER_AGENT)
            return Cost(last - first, before, await scene.meter.sample(**{PROGRAM: worker.pid}))


async def paced(scene: Scene) -> Cost:
    """Announcements that come at a rate that leaves the worker idle in between, so that its batches are small."""
    bench = scene.stage.bench
    async with (
        bench.fresh() as settings,
        connection_to(settings) as connection,
        worker_from(ROOT, settings, bench.folder) as worker,
    ):
        count = "SELECT count(*) FROM registrations"
        agents = int(PACE * (scene.seconds + WARM_UP_SECONDS)) // PER_AGENT
        await bench.publish(settings, 1)
        started = await at_least(connection, count, PER_AGENT)
        publishing = asyncio.create_task(bench.publish(settings, agents, PACE))
        try:
            first = await at_least(connection, count, started + int(PACE * WARM_UP_SECONDS))
            before = await scene.meter.sample(**{PROGRAM: worker.pid})
            last = await at_least(connection, count, started + agents * PER_AGENT)
            return Cost(last - first, before, await scene.meter.sample(**{PROGRAM: worker.pid}))
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)


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
    async with connection_to(scene.settings) as connection:
        while (await connection.execute(text(left))).scalar_one() < EVENTS:
            await scene.podium.turn("promotes", 32, 1.0, None)
        backlog = (await connection.execute(text(left))).scalar_one()
        already = (await connection.execute(text(done))).scalar_one()
        async with worker_from(ROOT, scene.settings, scene.stage.bench.folder, "relay") as worker:
            first = await at_least(connection, done, already + 1)
            before = await scene.meter.sample(**{PROGRAM: worker.pid})
            last = await at_least(connection, done, already + backlog)
            return Cost(last - first, before, await scene.meter.sample(**{PROGRAM: worker.pid}))


async def streamed(scene: Scene, streams: int) -> Cost:
    """Events delivered to streams of an API process, while another one makes the promotes that they tell of."""
    async with (
        another(scene.stage, scene.settings, scene.podium, "second") as second,
        aiohttp.ClientSession() as client,
    ):
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


Measure = Callable[[Scene], Awaitable[Cost]]
# What the servers do meanwhile is the work of the promotes.
STREAMED = ("event to one stream", f"event to one of {STREAMS} streams")
QUEUED = "message into the queue, confirmed"
PACED = f"announcement over AMQP, {PACE} a second"
WORK: dict[str, Measure] = {
    PACED: paced,
    "announcement over AMQP, in batches of 200": over_amqp,
    "registration over HTTP, alone": lambda scene: over_http(scene, "registrations", 1),
    "registration over HTTP, 32 at a time": lambda scene: over_http(scene, "registrations", 32),
    "promote, alone": lambda scene: over_http(scene, "promotes", 1),
    "promote, 32 at a time": lambda scene: over_http(scene, "promotes", 32),
    "rollback, alone": lambda scene: over_http(scene, "rollbacks", 1),
    "rollback, 32 at a time": lambda scene: over_http(scene, "rollbacks", 32),
    "call forwarded, alone": lambda scene: over_http(scene, "forwards", 1),
    "call forwarded, 32 at a time": lambda scene: over_http(scene, "forwards", 32),
    "read of an agent, 32 at a time": lambda scene: over_http(scene, "reads", 32),
    "event published by the relay": relayed,
    STREAMED[0]: lambda scene: streamed(scene, 1),
    STREAMED[1]: lambda scene: streamed(scene, STREAMS),
    "probe": probed,
    QUEUED: published,
}


async def unit_costs(bench: Bench, meter: Meter, work: Sequence[str], seconds: float) -> dict[str, Cost]:
    """The cost of each kind of work."""
    found: dict[str, Cost] = {}
    async with stage_of(bench) as stage, bench.fresh() as settings:
        variables = {"PODIUM_PROBE_INTERVAL": PROBE_INTERVAL_SECONDS}
        async with api(stage, settings, "podium", ROOT, **variables) as podium:
            scene = Scene(stage, meter, settings, podium, seconds)
            for name in work:
                with console.status(f"measuring {name} ..."):
                    found[name] = await WORK[name](scene)
                console.print(f"{name}: {found[name].per_second:,.0f}/s", highlight=False)
    return found
