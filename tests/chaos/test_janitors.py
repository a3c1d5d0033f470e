"""Many deployments, few janitors: each is asked in time, by one of them, and the death of one delays nobody for long.

The long form is the promise: 5,000 deployments asked by one process within 30 seconds. What it costs is printed.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic

from aiohttp import web

from podium.servers.process import GuardedProcess
from services.registration.batch import register_batch
from services.storage.database import in_transaction
from tests.chaos.ground import Field
from tests.chaos.size import SIZE
from tests.support.factories import incoming
from tests.support.waiting import eventually, rows

VERSIONS = 20
BATCH = 500
# Beyond the interval, on a machine that does other things as well.
SLACK_SECONDS = 5 + SIZE.probe_interval / 2
TICKS = os.sysconf("SC_CLK_TCK")
WORK = "SELECT xact_commit, tup_updated, tup_fetched FROM pg_stat_database WHERE datname = current_database()"
BACKENDS = """
    SELECT pid FROM pg_stat_activity WHERE application_name = 'podium-janitor' AND datname = current_database()"""


class Fleet:
    """One server that is the pod of many deployments, each below a path of its own; it knows who was asked when."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: dict[str, list[float]] = defaultdict(list)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Remember who was asked."""
        self.asked[request.path].append(monotonic())
        return web.Response()

    async def all_asked_since(self, moment: float) -> None:
        """Return once each of them was asked after this moment, which must be in time."""

        async def everybody() -> bool:
            return sum(times[-1] > moment for times in self.asked.values()) == SIZE.probed

        await eventually(everybody, "everybody is asked", seconds=SIZE.probe_interval + 4 * SLACK_SECONDS)

    def gaps(self, since: float) -> list[float]:
        """The seconds between one look at a deployment and the next."""
        kept = ([each for each in times if each > since] for times in self.asked.values())
        return sorted(later - earlier for times in kept for earlier, later in pairwise(times))


@asynccontextmanager
async def fleet_of(field: Field) -> AsyncIterator[Fleet]:
    """Pods that have all announced themselves."""
    fleet = Fleet()
    runner = web.ServerRunner(web.Server(fleet.answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    fleet.url = "http://{}:{}".format(*runner.addresses[0])
    announced = [
        incoming(f"bot-{number // VERSIONS}", deployment_id=f"v-{number}", acp_url=f"{fleet.url}/{number}")
        for number in range(SIZE.probed)
    ]
    for start in range(0, len(announced), BATCH):
        batch = announced[start : start + BATCH]
        await in_transaction(field.sessions, lambda session, batch=batch: register_batch(session, batch))  # type: ignore[misc]
    try:
        yield fleet
    finally:
        await runner.cleanup()


async def test_one_janitor_asks_everybody_in_time_and_two_share_the_work(field: Field) -> None:
    """Nobody waits longer than the interval, nobody is asked twice in it, and whoever is left takes over."""
    often = {"PODIUM_PROBE_INTERVAL": str(SIZE.probe_interval)}
    async with fleet_of(field) as fleet, field.worker("janitor", **often) as first:
        await fleet.all_asked_since(0)
        # What came at once is apart after a round.
        await asyncio.sleep(SIZE.probe_interval)
        began, cost = monotonic(), await Cost.so_far(field, first)
        await asyncio.sleep(2 * SIZE.probe_interval)
        alone = (await Cost.so_far(field, first)).since(cost, monotonic() - began)
        gaps = fleet.gaps(began)
        assert gaps[-1] < SIZE.probe_interval + SLACK_SECONDS
        assert nearly_all(gaps) > SIZE.probe_interval / 2

        async with field.worker("janitor", **often) as second:
            await asyncio.sleep(SIZE.probe_interval)
            together, used = monotonic(), (cpu_seconds(first.pid), cpu_seconds(second.pid))
            await asyncio.sleep(SIZE.probe_interval)
            shares = cpu_seconds(first.pid) - used[0], cpu_seconds(second.pid) - used[1]
            assert nearly_all(fleet.gaps(together - SIZE.probe_interval)) > SIZE.probe_interval / 2
            assert min(shares) > sum(shares) / 10
            await first.kill()
            killed = monotonic()
            await fleet.all_asked_since(killed)
            took = monotonic() - killed
    assert await rows(field.sessions, "SELECT 1 FROM deployments WHERE status <> 'Ready'") == []
    print(  # noqa: T201 - figures
        f"{SIZE.probed} deployments every {SIZE.probe_interval:.0f} s: {alone}; from one look to the next "
        f"{gaps[0]:.1f} to {gaps[-1]:.1f} s; CPU shares of two {shares[0]:.2f} and {shares[1]:.2f} s; "
        f"all asked again {took:.1f} s after one was killed"
    )


def nearly_all(gaps: list[float]) -> float:
    """What nine of ten gaps are longer than: where the machine holds one look up, the gap behind it is short."""
    return gaps[len(gaps) // 10]


class Cost:
    """What the janitor has cost so far."""

    def __init__(self, janitor: float, backends: float, commits: int, updated: int) -> None:
        self.numbers = (janitor, backends, commits, updated)

    @classmethod
    async def so_far(cls, field: Field, process: GuardedProcess) -> "Cost":
        """CPU of the process and of its sessions, and what the database has done."""
        backends = [row.pid for row in await rows(field.sessions, BACKENDS)]
        [work] = await rows(field.sessions, WORK)
        return cls(cpu_seconds(process.pid), sum(map(cpu_seconds, backends)), work.xact_commit, work.tup_updated)

    def since(self, earlier: "Cost", seconds: float) -> str:
        """For people, per second."""
        rates = [(now - then) / seconds for now, then in zip(self.numbers, earlier.numbers, strict=True)]
        return (
            f"janitor {rates[0]:.0%} of a core, its sessions {rates[1]:.0%}, "
            f"{rates[2]:.0f} commits/s, {rates[3]:.0f} rows updated/s"
        )


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors, as proc(5) has it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
