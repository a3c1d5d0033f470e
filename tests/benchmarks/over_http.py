"""Work over HTTP against one API process, beside a peer and the limit: rates, times, and CPU per request.

    python -m tests.benchmarks.over_http [--seconds 1] [--rounds 3] [--work registrations ...] [--connections 32 ...]
        [--release WHEEL]

The programs take turns, each round in another order; a figure is the median of the rounds. With `--release`, an API of
that wheel is measured as well. The load, the servers and the measured programs share one machine, so the numbers
compare programs.
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from podium.servers import private_servers
from tests.benchmarks.contenders import contenders
from tests.benchmarks.load import BUSY, Contender, Turn, Turns
from tests.benchmarks.measure import Bench
from tests.benchmarks.requests import REQUESTS
from tests.benchmarks.rows import CONNECTIONS, FULL, Figures, Length, console

OURS = "podium"

# The turns of each program, by `work/connections` and name.
Found = dict[str, dict[str, Turns]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long."""

    work: Sequence[str] = tuple(REQUESTS)
    connections: Sequence[int] = CONNECTIONS
    length: Length = FULL
    release: Path | None = None


async def over_http(bench: Bench, plan: Plan) -> Found:
    """Measure all rows of the plan and print each one."""
    found: Found = {}
    console.print("Starting the programs and registering their agents ...")
    async with contenders(bench, plan.release) as everybody:
        for kind in plan.work:
            for connections in plan.connections:
                rivals = [each for each in everybody if kind in each.jobs]
                with console.status(f"measuring {kind} on {connections} connections ..."):
                    turns = await _rounds(bench, rivals, kind, connections, plan.length)
                found[f"{kind}/{connections}"] = turns
                console.print(_line(f"{kind}, {connections}", turns), highlight=False, soft_wrap=True)
    return found


async def _rounds(
    bench: Bench, rivals: list[Contender], kind: str, connections: int, length: Length
) -> dict[str, Turns]:
    database = bench.database_pid
    able = []
    for each in rivals:
        turn = await each.turn(kind, connections, length.warm_up_seconds, database)
        if turn.failures < turn.answers:
            able.append(each)
        else:
            # An earlier release may not know this kind of work.
            assert each.name == "release", f"{each.name} does not succeed with {kind}"
    found: dict[str, list[Turn]] = {each.name: [] for each in able}
    for number in range(length.rounds):
        first = number % len(able)
        for each in able[first:] + able[:first]:
            found[each.name].append(await each.turn(kind, connections, length.seconds, database))
    return {name: Turns(turns) for name, turns in found.items()}


def figures(found: Found) -> Figures:
    """All figures by name: `reads_32` is Podium's rate on 32 connections, `reads_32_peer` that of the peer."""
    named = {name: value for key, turns in found.items() for name, value in _figures_of(key, turns)}
    return {**named, **_added(found)}


def _figures_of(key: str, found: dict[str, Turns]) -> list[tuple[str, float]]:
    prefix = key.replace("/", "_")
    named: list[tuple[str, float]] = []
    for name, turns in found.items():
        of = prefix if name == OURS else f"{prefix}_{name}"
        named += [
            (of, turns.per_second),
            (f"{of}_api_ms", turns.api_ms),
            (f"{of}_database_ms", turns.database_ms),
            (f"{of}_p50_ms", turns.p50_ms),
            (f"{of}_p99_ms", turns.p99_ms),
            (f"{of}_failures", turns.failures),
        ]
    return named


def _added(found: Found) -> Figures:
    """What Podium adds to a call on one connection: the median of the rounds, each beside direct calls."""
    turns = found.get("forwards/1")
    if turns is None:
        return {}
    pairs = list(zip(turns[OURS].turns, turns["limit"].turns, strict=True))
    return {
        "forward_added_p50_ms": statistics.median(through.p50_ms - direct.p50_ms for through, direct in pairs),
        "forward_added_p99_ms": statistics.median(through.p99_ms - direct.p99_ms for through, direct in pairs),
    }


def rounds(found: Found) -> dict[str, dict[str, list[dict[str, float]]]]:
    """All turns, as JSON."""
    return {
        key: {name: [dataclasses.asdict(turn) for turn in own.turns] for name, own in turns.items()}
        for key, turns in found.items()
    }


def _line(title: str, found: dict[str, Turns]) -> str:
    ours = found[OURS]
    parts = [f"[bold]{title}[/]: {_costs(ours)}"]
    for name, turns in found.items():
        if name != OURS:
            parts.append(f"{name} {_costs(turns)}: {ours.per_second / turns.per_second:.2f}x")
    parts += [f"[yellow]{name}: {turns.failures} answers failed[/]" for name, turns in found.items() if turns.failures]
    parts += [
        f"[yellow]{name}: the load program used {turns.load_share:.0%} of a core and may be the limit[/]"
        for name, turns in found.items()
        if turns.load_share >= BUSY
    ]
    return "\n    ".join(parts)


def _costs(turns: Turns) -> str:
    api = f"{turns.api_ms:.2f} + " if turns.api_ms else ""
    return f"{turns.per_second:,.0f}/s (CPU {api}{turns.database_ms:.2f} ms, p50 {turns.p50_ms:.1f} ms)"


async def _alone(folder: Path, plan: Plan) -> None:
    async with private_servers(folder / "servers") as servers:
        await over_http(Bench(servers, folder), plan)


def main(plan: Plan) -> None:
    """Measure on private servers and print each row."""
    with tempfile.TemporaryDirectory(prefix="podium-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' unprivileged account must be able to enter it
        uvloop.run(_alone(folder, plan))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure work over HTTP. Each row: CPU of the API + PostgreSQL.")
    parser.add_argument("--seconds", type=float, default=FULL.seconds)
    parser.add_argument("--rounds", type=int, default=FULL.rounds)
    parser.add_argument("--work", nargs="*", choices=tuple(REQUESTS), default=tuple(REQUESTS))
    parser.add_argument("--connections", nargs="*", type=int, default=CONNECTIONS)
    parser.add_argument("--release", type=Path, default=None, help="a wheel of an earlier release")
    options = parser.parse_args()
    length = Length(rounds=options.rounds, seconds=options.seconds)
    main(Plan(options.work, options.connections, length, options.release))
