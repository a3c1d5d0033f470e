"""Two processes beside one: what a second API or worker process brings.

One process and two take turns; a rate is the median of the rounds. If the load and the servers leave no core free, a
second process cannot be faster; then the CPU of one piece of work says whether two processes disturb each other.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from tests.benchmarks.contenders import another, api, stage_of
from tests.benchmarks.fleet import PER_AGENT
from tests.benchmarks.load import Contender, load_process
from tests.benchmarks.measure import Bench, worker_from
from tests.benchmarks.meter import Cost, Meter, at_least, connection_to
from tests.benchmarks.rows import console
from tests.support.processes import ROOT

WARM_UP_SECONDS = 0.5
CONNECTIONS = 64  # of all processes together
BACKLOG_AGENTS = 200
KINDS = ("registrations", "promotes", "reads", "forwards")


@dataclass(frozen=True, slots=True)
class Measured:
    """What this many processes did in one round."""

    processes: int
    cost: Cost

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of CPU of all processes for each piece of work."""
        return sum(self.cost.cpu_ms(f"process {number}") for number in range(self.processes))


async def workers(bench: Bench, meter: Meter, processes: int) -> Measured:
    """Announcements of a backlog, by this many registrars."""
    async with AsyncExitStack() as stack:
        settings = await stack.enter_async_context(bench.fresh())
        await bench.publish(settings, BACKLOG_AGENTS)
        connection = await stack.enter_async_context(connection_to(settings))
        started = [await stack.enter_async_context(worker_from(ROOT, settings, bench.folder)) for _ in range(processes)]
        pids = {f"process {number}": each.pid for number, each in enumerate(started)}
        query = "SELECT count(*) FROM registrations"
        first = await at_least(connection, query, BACKLOG_AGENTS * PER_AGENT // 4)  # all of them work by then
        before = await meter.sample(**pids)
        last = await at_least(connection, query, BACKLOG_AGENTS * PER_AGENT)
        return Measured(processes, Cost(last - first, before, await meter.sample(**pids)))


async def requests(meter: Meter, apis: Sequence[Contender], kind: str, seconds: float) -> Measured:
    """Requests to these API processes, of different agents."""
    connections = CONNECTIONS // len(apis)
    pids = {f"process {number}": each.pid for number, each in enumerate(apis)}
    await asyncio.gather(*(each.turn(kind, connections, WARM_UP_SECONDS, None) for each in apis))
    before = await meter.sample(**pids)
    turns = await asyncio.gather(*(each.turn(kind, connections, seconds, None) for each in apis))
    assert not any(turn.failures for turn in turns)
    return Measured(len(apis), Cost(sum(turn.answers for turn in turns), before, await meter.sample(**pids)))


async def scale_out(bench: Bench, meter: Meter, seconds: float, rounds: int) -> dict[str, list[Measured]]:
    """All rounds by kind of work."""
    found: dict[str, list[Measured]] = {}
    numbers = [1, 2] * rounds
    with console.status("measuring one and two workers ..."):
        found["announcements over AMQP"] = [await workers(bench, meter, number) for number in numbers]
    async with (
        stage_of(bench) as stage,
        bench.fresh() as settings,
        load_process("http_load") as load,
        api(stage, settings, "podium") as first,
        another(stage, settings, first, "second") as second,
    ):
        apis = [first, replace(second, load=load, jobs={kind: _others(second, kind) for kind in KINDS})]
        for kind in KINDS:
            with console.status(f"measuring {kind} on one and two API processes ..."):
                found[kind] = [await requests(meter, apis[:number], kind, seconds) for number in numbers]
    return found


def _others(second: Contender, kind: str) -> dict[str, object]:
    """The requests of the other half of the connections, so that no two processes change one agent."""
    job = dict(second.jobs[kind])
    requests_of = job["requests"]
    assert isinstance(requests_of, list)
    half = CONNECTIONS // 2
    job["requests"] = requests_of[half:] + requests_of[:half]
    return job
