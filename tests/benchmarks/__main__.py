"""`make bench`: compares Podium with common implementations and with the limits of the servers.

    python -m tests.benchmarks [--runs 3] [--output results.json] [--chart chart.svg]

Caveats: the servers, the load and the measured program share one machine, so the numbers compare programs and say
little about one program alone. The backlog is published before the measurement starts. The peers do less than Podium.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from podium.servers import private_servers
from tests.benchmarks.chart import draw
from tests.benchmarks.forwarding import forwarding
from tests.benchmarks.measure import Bench
from tests.benchmarks.rows import LIMITS, RATIOS, Figures

AGENTS = 400
PEER_AGENTS = 40
SESSIONS = 64
PROMOTES_EACH = 40
COMMITS = 20_000
LATENCY_SAMPLES = 300

console = Console()


def main(runs: int, output: Path | None, chart: Path | None) -> None:
    """Measure everything `runs` times; print a table after each run; write all figures as JSON and as a chart."""
    with tempfile.TemporaryDirectory(prefix="podium-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' unprivileged account must be able to enter it
        results = uvloop.run(run(runs, folder))
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    if output is not None:
        output.write_text(json.dumps({"machine": machine, "runs": results}, indent=2) + "\n")
    if chart is not None:
        about = f"{machine['cores']} cores, Python {machine['python']}"
        chart.write_text(draw(results, about))


async def run(runs: int, folder: Path) -> list[dict[str, float]]:
    """Returns the figures of each run."""
    results: list[dict[str, float]] = []
    async with private_servers(folder / "servers") as servers:
        bench = Bench(servers, folder)
        for number in range(1, runs + 1):
            results.append(await _measure(bench))
            console.print(_table(results[-1], f"run {number} of {runs}"))
    return results


async def _measure(bench: Bench) -> dict[str, float]:
    steps: dict[str, Callable[[], Awaitable[float]]] = {
        "registrations": lambda: bench.registrations_per_second(AGENTS),
        "usual_way": lambda: bench.peer_registrations_per_second("faststream_orm", PEER_AGENTS),
        "raw_consume": lambda: bench.peer_registrations_per_second("raw_consume", AGENTS),
        "promotes": lambda: bench.promotes_per_second(SESSIONS, PROMOTES_EACH),
        "commits": lambda: bench.commits_per_second(SESSIONS, COMMITS),
    }
    found: dict[str, float] = {}
    for name, step in steps.items():
        with console.status(f"measuring {name} ..."):
            found[name] = await step()
    with console.status("measuring the gateway ..."):
        found |= await forwarding(bench)
    with console.status("measuring the way of an event ..."):
        latencies = await bench.event_latencies_ms(LATENCY_SAMPLES)
    percentiles = statistics.quantiles(latencies, n=100)
    return {**found, "event_p50_ms": percentiles[49], "event_p99_ms": percentiles[98]}


def _table(found: Figures, title: str) -> Table:
    table = Table(title=title)
    for heading in ("work", "Podium", "compared with", "", "ratio", "target"):
        table.add_column(heading, justify="left" if heading in {"work", "compared with"} else "right")
    for each in RATIOS:
        if each.measured(found):
            table.add_row(
                each.work,
                f"{found[each.ours]:,.0f}",
                each.peer,
                f"{found[each.theirs]:,.0f}",
                f"{each.of(found):.2f}x",
                f">= {each.target:g}x" if each.target else "",
            )
    for limit in LIMITS:
        table.add_row(limit.work, f"{found[limit.ours]:.2f} ms", "-", "", "", f"<= {limit.target_ms:g} ms")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure Podium and its peers.")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=None, help="write all numbers to this file as JSON")
    parser.add_argument("--chart", type=Path, default=None, help="draw the median of the runs into this SVG file")
    options = parser.parse_args()
    main(options.runs, options.output, options.chart)
