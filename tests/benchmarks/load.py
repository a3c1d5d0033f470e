"""Load from separate processes, and what a turn of it found and cost."""

import asyncio
import json
import os
import statistics
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tests.benchmarks.cpu import cpu_seconds
from tests.support.processes import ROOT

PEERS = "tests.benchmarks.peers"
# A turn ends when the last answer has come, which may be long after its time.
PATIENCE_SECONDS = 60.0
# From this share of a core on, the load program may be what limits.
BUSY = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one program answered in some seconds of load, and the CPU seconds that it took."""

    answers: int
    failures: int
    seconds: float
    load_seconds: float
    api_seconds: float
    database_seconds: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Turns:
    """The turns of one program with one kind of work."""

    turns: Sequence[Turn]

    @property
    def per_second(self) -> float:
        """Successful answers per second: the median of the turns."""
        return statistics.median((turn.answers - turn.failures) / turn.seconds for turn in self.turns)

    @property
    def api_ms(self) -> float:
        """Milliseconds of CPU of the API process for each answer."""
        return sum(turn.api_seconds for turn in self.turns) * 1000 / self.answers

    @property
    def database_ms(self) -> float:
        """Milliseconds of CPU of PostgreSQL for each answer."""
        return sum(turn.database_seconds for turn in self.turns) * 1000 / self.answers

    @property
    def answers(self) -> int:
        """All answers."""
        return sum(turn.answers for turn in self.turns)

    @property
    def failures(self) -> int:
        """Answers that were no success."""
        return sum(turn.failures for turn in self.turns)

    @property
    def p50_ms(self) -> float:
        """The median time of an answer: the median of the turns."""
        return statistics.median(turn.p50_ms for turn in self.turns)

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the time of an answer: the median of the turns."""
        return statistics.median(turn.p99_ms for turn in self.turns)

    @property
    def load_share(self) -> float:
        """The largest share of a core that the load program used in a turn."""
        return max(turn.load_seconds / turn.seconds for turn in self.turns)


class LoadProcess:
    """A program of `peers` that does one job after another."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def do(self, job: Mapping[str, object], connections: int, seconds: float) -> dict[str, float]:
        """What the program prints about this job."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**job, "connections": connections, "seconds": seconds}).encode() + b"\n")
        await self._process.stdin.drain()
        printed = await asyncio.wait_for(self._process.stdout.readline(), seconds + PATIENCE_SECONDS)
        assert printed, "the load program ended"
        found: dict[str, float] = json.loads(printed)
        return found


@asynccontextmanager
async def load_process(name: str, env: Mapping[str, str] | None = None) -> AsyncIterator[LoadProcess]:
    """The program `name` of `peers`, while inside. It ends with its input, so also if this process is killed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"{PEERS}.{name}"),
        cwd=ROOT,
        env=dict(env or os.environ),
        stdin=pipe,
        stdout=pipe,
        start_new_session=True,  # Ctrl-C is for this process, which ends the program
    )
    try:
        yield LoadProcess(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Contender:
    """A program under measurement."""

    name: str
    pid: int | None
    """The process whose CPU time counts as the API's."""
    load: LoadProcess
    jobs: Mapping[str, Mapping[str, object]]
    """What the load process has to do, by kind of work; a kind that is missing here cannot be measured."""

    async def turn(self, kind: str, connections: int, seconds: float, database: int | None) -> Turn:
        """Load the program; `database` is the process id of PostgreSQL."""
        before = cpu_seconds(self.pid), cpu_seconds(database)
        found = await self.load.do(self.jobs[kind], connections, seconds)
        after = cpu_seconds(self.pid), cpu_seconds(database)
        return Turn(
            answers=int(found["answers"]),
            failures=int(found["failures"]),
            seconds=found["seconds"],
            load_seconds=found["cpu_seconds"],
            api_seconds=after[0] - before[0],
            database_seconds=after[1] - before[1],
            p50_ms=found["p50_ms"],
            p99_ms=found["p99_ms"],
        )
