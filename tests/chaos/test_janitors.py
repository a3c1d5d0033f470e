"""Many deployments and few janitors: each deployment is probed in time, also after a janitor has died.

The long size is the promise: one process probes 5,000 deployments within 30 seconds. The test prints what it costs.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from time import monotonic

from aiohttp import web

from podium.servers.process import GuardedProcess
from services.registration.batch import register_batch
from services.storage.database import in_transaction
from tests.chaos.size import SIZE
from tests.chaos.system import System
from tests.support.factories import incoming
from tests.support.processes import cpu_seconds
from tests.support.waiting import eventually, rows

VERSIONS = 20
BATCH = 500
# Tolerance beyond the interval, for a machine that runs other programs too.
SLACK_SECONDS = 5 + SIZE.probe_interval / 2
WORK = "SELECT xact_commit, tup_updated, tup_fetched FROM pg_stat_database WHERE datname = current_database()"
BACKENDS = """
    SELECT pid FROM pg_stat_activity WHERE application_name = 'podium-janitor' AND datname = current_database()"""


class Fleet:
    """One server that acts as the pods of many deployments, one path each, and records when each was probed."""

    def __init__(self) -> None:
        self.url = ""
        self.probed_at: dict[str, list[float]] = defaultdict(list)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Record the probe."""
        self.probed_at[request.path].append(monotonic())
        return web.Response()

    async def all_probed_since(self, moment: float) -> None:
        """Wait until each deployment has been probed after this moment; fails if that takes too long."""

        async def all_probed() -> bool:
            return sum(times[-1] > moment for times in self.probed_at.values()) == SIZE.probed

        await eventually(all_probed, "a probe of each deployment", seconds=SIZE.probe_interval + 4 * SLACK_SECONDS)

    def gaps(self, since: float) -> list[float]:
        """Sorted seconds between consecutive probes of the same deployment."""
        kept = ([each for each in times if each > since] for times in self.probed_at.values())
        return sorted(later - earlier for times in kept for earlier, later in pairwise(times))


@asynccontextmanager
async def fleet_of(system: System) -> AsyncIterator[Fleet]:
    """A fleet whose pods have all registered."""
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
        await in_transaction(system.sessions, lambda session, batch=batch: register_batch(session, batch))  # type: ignore[misc]
    try:
        yield fleet
    finally:
        await runner.cleanup()


async def test_one_janitor_probes_all_in_time_and_two_share_the_work(system: System) -> None:
    """Each deployment is probed once per interval, and the remaining janitor takes over the work of a killed one."""
    often = {"PODIUM_PROBE_INTERVAL": str(SIZE.probe_interval)}
    async with fleet_of(system) as fleet, system.worker("janitor", **often) as first:
        await fleet.all_probed_since(0)
        # The probes start at the same time, and are spread after one interval.
        await asyncio.sleep(SIZE.probe_interval)
        began, cost = monotonic(), await Cost.so_far(system, first)
        await asyncio.sleep(2 * SIZE.probe_interval)
        alone = (await Cost.so_far(system, first)).since(cost, monotonic() - began)
        gaps = fleet.gaps(began)
        assert gaps[-1] < SIZE.probe_interval + SLACK_SECONDS
        assert nearly_all(gaps) > SIZE.probe_interval / 2

        async with system.worker("janitor", **often) as second:
            await asyncio.sleep(SIZE.probe_interval)
            together, used = monotonic(), (cpu_seconds(first.pid), cpu_seconds(second.pid))
            await asyncio.sleep(SIZE.probe_interval)
            shares = cpu_seconds(first.pid) - used[0], cpu_seconds(second.pid) - used[1]
            assert nearly_all(fleet.gaps(together - SIZE.probe_interval)) > SIZE.probe_interval / 2
            assert min(shares) > sum(shares) / 10
            await first.kill()
            killed = monotonic()
            await fleet.all_probed_since(killed)
            took = monotonic() - killed
    assert await rows(system.sessions, "SELECT 1 FROM deployments WHERE status <> 'Ready'") == []
    print(  # noqa: T201 - figures
        f"{SIZE.probed} deployments every {SIZE.probe_interval:.0f} s: {alone}; between two probes "
        f"{gaps[0]:.1f} to {gaps[-1]:.1f} s; CPU shares of two {shares[0]:.2f} and {shares[1]:.2f} s; "
        f"all probed again {took:.1f} s after one was killed"
    )


def nearly_all(gaps: list[float]) -> float:
    """Nine of ten gaps are longer than this. The shortest gap is no measure: it follows a delayed probe."""
    return gaps[len(gaps) // 10]


class Cost:
    """The cost of a janitor since its start."""

    def __init__(self, janitor: float, backends: float, commits: int, updated: int) -> None:
        self.numbers = (janitor, backends, commits, updated)

    @classmethod
    async def so_far(cls, system: System, process: GuardedProcess) -> "Cost":
        """CPU seconds of the process and of its database sessions, and the database's counters."""
        backends = [row.pid for row in await rows(system.sessions, BACKENDS)]
        [work] = await rows(system.sessions, WORK)
        return cls(cpu_seconds(process.pid), sum(map(cpu_seconds, backends)), work.xact_commit, work.tup_updated)

    def since(self, earlier: "Cost", seconds: float) -> str:
        """The rates per second since an earlier measurement, as text."""
        rates = [(now - then) / seconds for now, then in zip(self.numbers, earlier.numbers, strict=True)]
        return (
            f"janitor {rates[0]:.0%} of a core, its sessions {rates[1]:.0%}, "
            f"{rates[2]:.0f} commits/s, {rates[3]:.0f} rows updated/s"
        )
