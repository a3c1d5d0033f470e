"""The cost of a key check on RPC: calls with each kind of key beside calls without one, through one API process each.

    python -m tests.benchmarks.key_checks [--seconds 10]

Short turns alternate, since the machine is shared. CPU per call is of the API process and hardly depends on other load.
"""

import argparse
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table

from podium.servers import private_servers
from podium.servers.ports import free_ports
from podium.servers.process import Command, Launch, ProcessContext, start
from services.settings import Settings
from tests.benchmarks.load import PEERS, Contender, Turn, Turns, load_process
from tests.benchmarks.measure import Bench
from tests.benchmarks.requests import request
from tests.support.factories import a_body
from tests.support.processes import ROOT, environment, program
from tests.support.waiting import eventually

SECONDS = 10.0
TURN_SECONDS = 0.5
CONNECTIONS = (1, 32)
API_KEY = "the-api-key-of-this-benchmark"
WITHOUT = "no key"
BODY = {"jsonrpc": "2.0", "id": 1, "method": "message/send"}

console = Console()


async def key_checks(bench: Bench, seconds: float = SECONDS) -> dict[int, dict[str, Turns]]:
    """What was counted by number of connections and kind of key."""
    found: dict[int, dict[str, Turns]] = {}
    async with (
        bench.fresh() as settings,
        _agent(bench, settings) as agent,
        _api(bench, settings) as opened,
        _api(bench, settings, PODIUM_API_KEY=API_KEY) as keyed,
        load_process("http_load") as load,
    ):
        contenders = [
            Contender(name, pid, load, {"rpc": _job(urlsplit(url), head)})
            for name, head in (await _heads(keyed[0], agent)).items()
            for url, pid in (opened if name == WITHOUT else keyed,)
        ]
        for connections in CONNECTIONS:
            turns: dict[str, list[Turn]] = {each.name: [] for each in contenders}
            with console.status(f"measuring on {connections} connections ..."):
                for number in range(-1, round(seconds / TURN_SECONDS)):
                    # Each one comes first as often as the others: the first one of a turn has it a little easier.
                    contenders = [*contenders[1:], contenders[0]]
                    for each in contenders:
                        turn = await each.turn("rpc", connections, TURN_SECONDS, bench.database_pid)
                        if number >= 0:
                            turns[each.name].append(turn)
            found[connections] = {name: Turns(own) for name, own in turns.items()}
    return found


def _job(url: SplitResult, head: str) -> dict[str, object]:
    asked = request("POST", "/agents/name/bot/rpc", url.netloc, BODY, head)
    return {"host": url.hostname, "port": url.port, "requests": [[asked]]}


async def _heads(url: str, agent: str) -> dict[str, str]:
    """The headers of each kind of key, after the agent is there."""
    async with aiohttp.ClientSession(url, headers={"x-api-key": API_KEY}, raise_for_status=True) as client:
        await client.post("/agents/register", json=a_body("bot", deployment_id="v1", acp_url=agent))
        secrets = {}
        for name, agents in (("a named key", None), ("one for some agents", ["bot", "team-*"])):
            body = {"name": name.replace(" ", "-"), "scopes": ["invoke"], "agents": agents}
            async with client.post("/keys", json=body) as response:
                secrets[name] = (await response.json())["secret"]
    return {
        WITHOUT: "",
        "PODIUM_API_KEY": f"x-api-key: {API_KEY}\r\n",
        **{name: f"authorization: Bearer {secret}\r\n" for name, secret in secrets.items()},
    }


@asynccontextmanager
async def _agent(bench: Bench, settings: Settings) -> AsyncIterator[str]:
    port = free_ports(["agent"])["agent"]
    async with program(f"{PEERS}.quick_agent {port}", environment(settings), bench.folder / "agent.log"):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def _api(bench: Bench, settings: Settings, **variables: str) -> AsyncIterator[tuple[str, int]]:
    """The URL and the process id of an API."""
    port = free_ports(["api"])["api"]
    env = environment(settings, PODIUM_PORT=str(port), **variables)
    launch = Launch(Command([sys.executable, "-m", "podium", "api"], env, ROOT))
    process = await start(launch, ProcessContext(None, bench.folder / f"api-{port}.log"))
    try:
        url = f"http://127.0.0.1:{port}"

        async def answers() -> bool:
            try:
                async with aiohttp.ClientSession() as client, client.get(f"{url}/health/live") as response:
                    return response.status == HTTPStatus.OK
            except aiohttp.ClientError:
                return False

        await eventually(answers, "the API answers")
        yield url, process.pid
    finally:
        await process.stop()


def _table(found: dict[int, dict[str, Turns]]) -> Table:
    table = Table(title="RPC by kind of key: calls/s, CPU of the API per call in ms, and beside calls without a key")
    for column in ("connections", "key", "calls/s", "ms", "beside"):
        table.add_column(column, justify="left" if column == "key" else "right")
    for connections, counts in found.items():
        for name, each in counts.items():
            beside = f"{each.api_ms / counts[WITHOUT].api_ms:.3f}"
            table.add_row(str(connections), name, f"{each.per_second:.0f}", f"{each.api_ms:.3f}", beside)
    return table


async def _alone(folder: Path, seconds: float) -> dict[int, dict[str, Turns]]:
    async with private_servers(folder / "servers") as servers:
        return await key_checks(Bench(servers, folder), seconds)


def main(seconds: float) -> None:
    """Measure on private servers and print the figures."""
    with tempfile.TemporaryDirectory(prefix="podium-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' unprivileged account must be able to enter it
        console.print(_table(uvloop.run(_alone(folder, seconds))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the cost of key checks on RPC.")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    main(parser.parse_args().seconds)
