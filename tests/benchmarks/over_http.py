"""Writes and reads over HTTP against one API process, beside a peer: requests per second, and CPU per request.

    python -m tests.benchmarks.over_http [--seconds 4] [--work registrations ...] [--release WHEEL]

With `--release`, an API of that wheel is measured in turn with this one, on a database of its own.
The load, the servers and the measured programs share one machine, so the numbers compare programs.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import make_url

from podium.servers import private_servers
from podium.servers.ports import free_ports
from podium.servers.process import Command, Launch, ProcessContext, start
from services.settings import Settings
from tests.benchmarks.measure import PEERS, Bench
from tests.support.factories import a_body
from tests.support.processes import ROOT, environment
from tests.support.waiting import eventually

SECONDS = 4.0
WARM_UP_SECONDS = 1.0
TURNS = 2
CONNECTIONS = (1, 32, 128)
AGENTS = 64
VERSIONS = 2
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

# The requests of each connection, for the ids of the agents and the host of the API.
Requests = Callable[[list[str], str], list[list[str]]]

console = Console()


@dataclass(frozen=True, slots=True)
class Target:
    """An API under measurement."""

    name: str
    url: str
    pid: int
    requests: dict[str, list[list[str]]]


@dataclass(slots=True)
class Counts:
    """The answers of one program to one kind of request, and what they cost."""

    answers: int = 0
    failures: int = 0
    seconds: float = 0.0
    api_seconds: float = 0.0
    database_seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds

    @property
    def api_ms(self) -> float:
        """Milliseconds of CPU of the API process for each answer."""
        return self.api_seconds / self.answers * 1000

    @property
    def database_ms(self) -> float:
        """Milliseconds of CPU of PostgreSQL for each answer."""
        return self.database_seconds / self.answers * 1000


def request(method: str, path: str, host: str, body: object = None, headers: str = "") -> str:
    """The text of a request; each of the further headers ends with CR LF."""
    content = "" if body is None else json.dumps(body)
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return f"{head}\r\n{content}"


def _announcement(agent: int, version: int, turn: int = 0) -> dict[str, object]:
    name = f"agent-{agent}"
    return a_body(
        name,
        deployment_id=f"{name}-v{version}",
        docker_image=f"registry.internal/{name}:{version}",
        acp_url=f"http://10.{turn % 250}.{agent}.{version}:8000",
        description="Answers questions of customers.",
    )


def _registrations(agents: list[str], host: str) -> list[list[str]]:
    return [
        [request("POST", "/agents/register", host, _announcement(agent, turn % VERSIONS, turn)) for turn in range(20)]
        for agent in range(len(agents))
    ]


def _promotes(agents: list[str], host: str) -> list[list[str]]:
    paths = [
        [f"/agents/{agent_id}/deployments/agent-{number}-v{version}/promote" for version in range(VERSIONS)]
        for number, agent_id in enumerate(agents)
    ]
    return [[request("POST", path, host, {}) for path in own] for own in paths]


def _reads(agents: list[str], host: str) -> list[list[str]]:
    return [[request("GET", f"/agents/{agent_id}", host)] for agent_id in agents]


def _lists(agents: list[str], host: str) -> list[list[str]]:  # noqa: ARG001 - as the others
    return [[request("GET", "/agents?limit=50", host)]]


WORK: dict[str, Requests] = {
    "registrations": _registrations,
    "promotes": _promotes,
    "reads": _reads,
    "lists": _lists,
}


async def over_http(
    bench: Bench, seconds: float = SECONDS, work: tuple[str, ...] = tuple(WORK), release: Path | None = None
) -> dict[str, dict[str, Counts]]:
    """Counts by `work/connections` and program: `podium`, `peer`, and `release` if a wheel is given."""
    found: dict[str, dict[str, Counts]] = {}
    async with AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(_target(bench, name)) for name in ("podium", "peer")]
        if release is not None:
            source = bench.folder / "release"
            with zipfile.ZipFile(release) as wheel:
                wheel.extractall(source)
            targets.append(await stack.enter_async_context(_target(bench, "release", source)))
        for kind in work:
            for connections in CONNECTIONS:
                key = f"{kind}/{connections}"
                counts = found[key] = {target.name: Counts() for target in targets}
                with console.status(f"measuring {kind} on {connections} connections ..."):
                    for target in targets:
                        await _load(target, kind, connections, WARM_UP_SECONDS)
                    for _ in range(TURNS):
                        for target in targets:
                            await count(bench, target, kind, connections, seconds / TURNS, counts[target.name])
    return found


async def count(bench: Bench, target: Target, kind: str, connections: int, seconds: float, into: Counts) -> None:
    """Send requests of one kind and add their counts."""
    database = bench.servers.postgres.pid if bench.servers.postgres else None
    before = _cpu_seconds(target.pid), _cpu_seconds(database)
    loaded = await _load(target, kind, connections, seconds)
    into.api_seconds += _cpu_seconds(target.pid) - before[0]
    into.database_seconds += _cpu_seconds(database) - before[1]
    into.answers += int(loaded["answers"])
    into.failures += int(loaded["failures"])
    into.seconds += loaded["seconds"]


async def _load(target: Target, kind: str, connections: int, seconds: float) -> dict[str, float]:
    parts = urlsplit(target.url)
    arguments = ["-m", f"{PEERS}.http_load", str(parts.hostname), str(parts.port), str(connections), str(seconds)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    requests = json.dumps(target.requests[kind]).encode()
    printed, _ = await asyncio.wait_for(process.communicate(requests), seconds + 60)
    assert process.returncode == 0
    counts: dict[str, float] = json.loads(printed)
    return counts


@asynccontextmanager
async def _target(bench: Bench, name: str, source: Path = ROOT) -> AsyncIterator[Target]:
    """A program from this source folder, with agents in a database of its own."""
    port = free_ports([name])[name]
    async with bench.fresh() as settings:
        env = _environment(settings, port) | {"PYTHONPATH": str(source), "PYTHONSAFEPATH": "1"}
        arguments = [f"{PEERS}.litestar_orm", str(port)] if name == "peer" else ["podium", "api"]
        command = Command([sys.executable, "-m", *arguments], env, source)
        process = await start(Launch(command), ProcessContext(None, bench.folder / f"{name}.log"))
        try:
            url = f"http://127.0.0.1:{port}"
            agents = await _fill(url)
            host = urlsplit(url).netloc
            yield Target(name, url, process.pid, {kind: make(agents, host) for kind, make in WORK.items()})
        finally:
            await process.stop()


def _environment(settings: Settings, port: int) -> dict[str, str]:
    """At the default pool size and log level."""
    url = make_url(settings.database_url.get_secret_value()).set(drivername="postgresql+asyncpg")
    env = environment(settings, PODIUM_PORT=str(port), PEER_DATABASE_URL=url.render_as_string(hide_password=False))
    del env["PODIUM_LOG_LEVEL"]
    return env


async def _fill(url: str) -> list[str]:
    """Register all agents, each with its versions; returns their ids."""
    async with aiohttp.ClientSession() as client:

        async def answers() -> bool:
            try:
                async with client.get(f"{url}/agents") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(answers, "the API answers")
        ids = []
        for agent in range(AGENTS):
            for version in range(VERSIONS):
                async with client.post(f"{url}/agents/register", json=_announcement(agent, version)) as response:
                    assert response.status == 200, await response.text()
                    agent_id = (await response.json())["id"]
            ids.append(agent_id)
    return ids


def _cpu_seconds(pid: int | None) -> float:
    """CPU time of a process, and of its children that run or were waited for; 0 if there is no process."""
    if pid is None:
        return 0.0
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = stat.read_text().partition(" (")
        except OSError:
            continue
        fields = rest.rpartition(")")[2].split()
        if int(number) == pid:
            ticks += sum(int(field) for field in fields[11:15])
        elif int(fields[1]) == pid:
            ticks += sum(int(field) for field in fields[11:13])
    return ticks / CLOCK_TICKS


def _table(found: dict[str, dict[str, Counts]]) -> Table:
    names = list(next(iter(found.values())))
    table = Table(title="Over HTTP: requests/s (CPU ms per request of the API + PostgreSQL)")
    table.add_column("work / connections")
    for name in names:
        table.add_column(name, justify="right")
    for name in names[1:]:
        table.add_column(f"podium / {name}", justify="right")
    for key, counts in found.items():
        ours = counts["podium"]
        table.add_row(
            key,
            *(f"{each.per_second:,.0f} ({each.api_ms:.2f} + {each.database_ms:.2f})" for each in counts.values()),
            *(f"{ours.per_second / counts[name].per_second:.2f}x" for name in names[1:]),
        )
    return table


async def _alone(folder: Path, seconds: float, work: tuple[str, ...], release: Path | None) -> None:
    async with private_servers(folder / "servers") as servers:
        found = await over_http(Bench(servers, folder), seconds, work, release)
    console.print(_table(found))
    failures = {key: {name: each.failures for name, each in counts.items()} for key, counts in found.items()}
    assert not any(number for counts in failures.values() for number in counts.values()), failures


def main(seconds: float, work: tuple[str, ...], release: Path | None) -> None:
    """Measure on private servers and print a table."""
    with tempfile.TemporaryDirectory(prefix="podium-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' unprivileged account must be able to enter it
        uvloop.run(_alone(folder, seconds, work, release))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure writes and reads over HTTP.")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--work", nargs="*", choices=tuple(WORK), default=tuple(WORK))
    parser.add_argument("--release", type=Path, default=None, help="a wheel of an earlier release")
    options = parser.parse_args()
    main(options.seconds, tuple(options.work), options.release)
