"""A run of all benchmarks on private servers."""

import statistics
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from podium.servers import private_servers
from tests.benchmarks.contenders import unpacked
from tests.benchmarks.in_process import promotes
from tests.benchmarks.measure import Bench
from tests.benchmarks.over_http import Plan, figures, over_http, rounds
from tests.benchmarks.results import QUIET, Results, Run, machine
from tests.benchmarks.rows import RELEASE, Figures, Length, console

SESSIONS = 64

Report = Callable[[Figures, str], None]


def measure(runs: int, length: Length, release: Path | None, report: Report) -> Results:
    """Measure everything `runs` times and report each run. The machine should be quiet."""
    facts = machine()
    if facts["load"] > QUIET:
        console.print(f"[yellow]The machine is not quiet (load {facts['load']}): the ratios are noisy.[/]")
    with tempfile.TemporaryDirectory(prefix="podium-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' unprivileged account must be able to enter it
        found = uvloop.run(_runs(runs, folder, length, release, report))
    return Results(facts, found)


async def _runs(runs: int, folder: Path, length: Length, release: Path | None, report: Report) -> list[Run]:
    results: list[Run] = []
    async with private_servers(folder / "servers") as servers:
        bench = Bench(servers, folder)
        for number in range(1, runs + 1):
            alone = await _without_http(bench, length, release)
            found = await over_http(bench, Plan(length=length, release=release))
            results.append(Run({**alone, **figures(found)}, rounds(found)))
            report(results[-1].figures, f"run {number} of {runs}")
    return results


async def _without_http(bench: Bench, length: Length, release: Path | None) -> Figures:
    """The median of the repeats of each figure. Each repeat does all steps, so that they take turns."""
    repeats: list[Figures] = []
    for _ in range(length.repeats):
        found: dict[str, float] = {}
        for title, step in _steps(bench, length, release).items():
            with console.status(f"measuring {title} ..."):
                measured = await step()
            shown = ", ".join(f"{name} {value:,.2f}" for name, value in measured.items())
            console.print(f"[bold]{title}[/]: {shown}", highlight=False, soft_wrap=True)
            found |= measured
        repeats.append(found)
    return {name: statistics.median(found[name] for found in repeats) for name in repeats[0]}


def _steps(bench: Bench, length: Length, release: Path | None) -> dict[str, Callable[[], Awaitable[Figures]]]:
    agents = length.agents
    steps: dict[str, Callable[[], Awaitable[Figures]]] = {
        "registrations over AMQP": lambda: bench.registrations(agents),
        "registrations over AMQP: a handler with an ORM session each": lambda: bench.peer_registrations(
            "usual_way", "faststream_orm", agents // 10
        ),
        "messages over AMQP without a database": lambda: bench.peer_registrations("raw_consume", "raw_consume", agents),
        "promotes in process": lambda: promotes(bench, SESSIONS, length.promotes_each),
        "single-row commits": lambda: bench.commits(SESSIONS, length.seconds * length.rounds),
    }
    if length.samples:
        steps["the way of an event"] = lambda: _event_percentiles(bench, length.samples)
    if release is not None:
        source, name = unpacked(release, bench.folder), f"registrations_{RELEASE}"
        steps["registrations over AMQP: the release"] = lambda: bench.registrations(agents, name, source)
    return steps


async def _event_percentiles(bench: Bench, samples: int) -> Figures:
    percentiles = statistics.quantiles(await bench.event_latencies_ms(samples), n=100)
    return {"event_p50_ms": percentiles[49], "event_p99_ms": percentiles[98]}
