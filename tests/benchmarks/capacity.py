"""The capacity model: what pieces of work cost, what two processes bring, and what a load needs.

    python -m tests.benchmarks.capacity [--results docs/capacity] [--seconds 4] [--rounds 3]

Prints the tables of docs/capacity.md. `--results NAME` writes the numbers to NAME.json, and the tables into NAME.md if
there is one. It takes about four minutes; the machine should be quiet.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import uvloop

from podium.servers import private_servers
from tests.benchmarks.documents import insert, row
from tests.benchmarks.measure import Bench
from tests.benchmarks.meter import POSTGRES, RABBITMQ, Cost, open_meter
from tests.benchmarks.results import as_json, described, machine
from tests.benchmarks.rows import console
from tests.benchmarks.scale_out import Measured, scale_out
from tests.benchmarks.unit_costs import PACED, PROGRAM, QUEUED, STREAMED, WORK, unit_costs

SECONDS, ROUNDS = 4.0, 3
# 10,000 agents that announce themselves 3 times a minute, with 500 calls a second, a promote a day each, and a
# production version and a preview each that are probed every 30 s.
EXAMPLE = {
    PACED: 10_000 * 3 / 60,
    "call forwarded, alone": 500.0,
    "promote, alone": 10_000 / 86_400,
    "event published by the relay": 10_000 / 86_400,
    "probe": 2 * 10_000 / 30,
}
# What stays until its retention ends. What other work stores, the next vacuum removes.
KEPT = {PACED, "promote, alone"}


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What one piece of work costs. CPU in milliseconds."""

    rate: float
    program_ms: float
    postgres_ms: float
    rabbitmq_ms: float
    wal_bytes: float
    statements: float
    stored_bytes: float

    @classmethod
    def of(cls, cost: Cost) -> Self:
        """As measured."""
        program, postgres, rabbitmq = (cost.cpu_ms(each) for each in (PROGRAM, POSTGRES, RABBITMQ))
        return cls(cost.per_second, program, postgres, rabbitmq, cost.wal_bytes, cost.statements, cost.stored_bytes)


@dataclass(frozen=True, slots=True)
class Scaled:
    """One and two processes: rates, CPU milliseconds of the processes for each piece, and cores in use."""

    rates: tuple[float, float]
    cpu_ms: tuple[float, float]
    cores: tuple[float, float]

    @classmethod
    def of(cls, measured: Sequence[Measured]) -> Self:
        """The medians of all rounds."""
        both = [[each for each in measured if each.processes == number] for number in (1, 2)]
        rates = [statistics.median(each.cost.per_second for each in own) for own in both]
        cpu_ms = [statistics.median(each.cpu_ms for each in own) for own in both]
        cores = [statistics.median(each.cost.cores for each in own) for own in both]
        return cls((rates[0], rates[1]), (cpu_ms[0], cpu_ms[1]), (cores[0], cores[1]))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What was measured, and on which machine."""

    machine: Mapping[str, Any]
    costs: Mapping[str, UnitCost]
    scaled: Mapping[str, Scaled]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises `OSError` and `ValueError`."""
        stored = json.loads(path.read_text())
        costs = {name: UnitCost(**cost) for name, cost in stored["costs"].items()}
        scaled = {
            name: Scaled(**{key: tuple(both) for key, both in each.items()}) for name, each in stored["scaled"].items()
        }
        return cls(stored["machine"], costs, scaled)

    def as_json(self) -> str:
        """All numbers."""
        return as_json(asdict(self))


def needs(costs: Mapping[str, UnitCost], load: Mapping[str, float]) -> dict[str, UnitCost]:
    """What each kind of work of a load needs a second, given as pieces a second: CPU is in cores, then."""
    return {
        name: UnitCost(
            rate=per_second,
            program_ms=costs[name].program_ms * per_second / 1000,
            postgres_ms=costs[name].postgres_ms * per_second / 1000,
            rabbitmq_ms=costs[name].rabbitmq_ms * per_second / 1000,
            wal_bytes=costs[name].wal_bytes * per_second,
            statements=costs[name].statements * per_second,
            stored_bytes=costs[name].stored_bytes * per_second,
        )
        for name, per_second in load.items()
    }


def markdown(found: Capacity) -> str:
    """The tables of docs/capacity.md."""
    tables = (_costs(found.costs), _scaled(found.scaled), _example(needs(found.costs, EXAMPLE)))
    lines = [f"Measured on {described(found.machine)}."]
    for title, table in zip(("What one costs", "Two processes", "What the example needs"), tables, strict=True):
        lines += ["", f"### {title}", "", *table]
    return "\n".join([*lines, ""])


def _costs(costs: Mapping[str, UnitCost]) -> Iterator[str]:
    yield row(
        "one", "API or worker", "PostgreSQL", "RabbitMQ", "WAL", "stored", "statements", "one core of the process does"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, cost in costs.items():
        servers = [f"{cpu:.3f} ms" for cpu in (cost.postgres_ms, cost.rabbitmq_ms)]
        servers += [f"{size:,.0f} B" for size in (cost.wal_bytes, cost.stored_bytes)]
        servers = [*servers, f"{cost.statements:.2f}"]
        if name in STREAMED or name == QUEUED:  # the database does other work meanwhile, or none
            servers = ["", servers[1] if name == QUEUED else "", "", "", ""]
        ours = (f"{cost.program_ms:.3f} ms", f"{1000 / cost.program_ms:,.0f}/s") if cost.program_ms else ("", "")
        yield row(name, ours[0], *servers, ours[1])


def _scaled(scaled: Mapping[str, Scaled]) -> Iterator[str]:
    yield row("work", "one process", "two", "two / one", "CPU of one of them", "with two", "cores in use", "with two")
    yield "|---|---|---|---|---|---|---|---|"
    for name, each in scaled.items():
        rates = (f"{each.rates[0]:,.0f}/s", f"{each.rates[1]:,.0f}/s", f"{each.rates[1] / each.rates[0]:.2f}x")
        yield row(name, *rates, *(f"{cpu:.2f} ms" for cpu in each.cpu_ms), *(f"{cores:.1f}" for cores in each.cores))


def _example(needed: Mapping[str, UnitCost]) -> Iterator[str]:
    yield row("work", "a second", "API and workers", "PostgreSQL", "RabbitMQ", "WAL", "stored a day", "statements")
    yield "|---|---|---|---|---|---|---|---|"
    for name, each in needed.items():
        yield row(name, f"{each.rate:,.1f}", *_needed({name: each}))
    yield row("**all**", "", *_needed(needed))


def _needed(needed: Mapping[str, UnitCost]) -> Iterator[str]:
    parts = list(needed.values())
    for name in ("program_ms", "postgres_ms", "rabbitmq_ms"):
        yield f"{sum(getattr(each, name) for each in parts):.2f} cores"
    yield f"{sum(each.wal_bytes for each in parts) / 1000:,.0f} kB/s"
    yield f"{sum(each.stored_bytes for name, each in needed.items() if name in KEPT) * 86_400 / 1e9:,.1f} GB"
    yield f"{sum(each.statements for each in parts):,.0f}/s"


def main(results: str | None, seconds: float, rounds: int) -> None:
    """Measure on private servers, print the tables, write the results."""
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="podium-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' unprivileged account must be able to enter it
        found = Capacity(facts, *uvloop.run(_measure(folder, seconds, rounds)))
    console.print(markdown(found), highlight=False, soft_wrap=True)
    if results is not None:
        Path(f"{results}.json").write_text(found.as_json())
        # The file has fewer digits.
        insert(Path(f"{results}.md"), markdown(Capacity.read(Path(f"{results}.json"))))


async def _measure(folder: Path, seconds: float, rounds: int) -> tuple[dict[str, UnitCost], dict[str, Scaled]]:
    async with private_servers(folder / "servers") as servers:
        bench = Bench(servers, folder)
        async with open_meter(bench) as meter:
            costs = await unit_costs(bench, meter, tuple(WORK), seconds)
            scaled = await scale_out(bench, meter, seconds / 2, rounds)
    return (
        {name: UnitCost.of(cost) for name, cost in costs.items()},
        {name: Scaled.of(measured) for name, measured in scaled.items()},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what work costs, and what a load needs.")
    parser.add_argument("--results", default=None, help="write the numbers to a file with this name")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each kind of work")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of one and two processes")
    options = parser.parse_args()
    try:
        main(options.results, options.seconds, options.rounds)
    except KeyboardInterrupt:
        sys.exit("Stopped: nothing was written.")
