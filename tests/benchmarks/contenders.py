"""The programs that are measured over HTTP, each on a database of its own with the same agents."""

import asyncio
import shutil
import sys
import zipfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from sqlalchemy.engine import make_url

from podium.servers.ports import free_ports
from podium.servers.process import Command, Launch, ProcessContext, start
from services.settings import Settings
from tests.benchmarks.load import PEERS, Contender, LoadProcess, load_process
from tests.benchmarks.measure import Bench
from tests.benchmarks.requests import CALL, REQUESTS, Fleet, all_announcements, request
from tests.support.processes import ROOT, environment
from tests.support.waiting import eventually

AT_A_TIME = 16
# Which statement of `database_limit` bounds which kind of work.
LIMITS = {
    **dict.fromkeys(("registrations", "promotes", "promotes_of_one", "rollbacks"), "commits"),
    "reads": "reads",
    "lists": "reads of 50",
}
NGINX_PATHS = ("nginx", "/usr/sbin/nginx")
_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx-errors.log;
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_requests 10000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream agent {{ server {agent}; keepalive 256; keepalive_requests 10000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://agent; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """What all contenders share: the servers, the load program, and the address of the agents' pods."""

    bench: Bench
    load: LoadProcess
    pods: str


@asynccontextmanager
async def stage_of(bench: Bench) -> AsyncIterator[Stage]:
    """A load program, and an agent that answers all calls and probes."""
    port = free_ports(["agent"])["agent"]
    async with (
        _listening_program(bench, "agent", [f"{PEERS}.quick_agent", str(port)], {}, port),
        load_process("http_load") as load,
    ):
        yield Stage(bench, load, f"http://127.0.0.1:{port}")


@asynccontextmanager
async def contenders(bench: Bench, release: Path | None) -> AsyncIterator[list[Contender]]:
    """Podium, the same at the log level `warning`, the peers, an earlier release if its wheel is given, the limits."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        stage = await enter(stage_of(bench))
        settings = await enter(bench.fresh())
        podium = await enter(api(stage, settings, "podium"))
        found = [podium, await enter(_quieter(stage, settings, podium))]
        found += [await enter(_orm(stage)), await enter(_httpx(stage))]
        if release is not None:
            settings = await enter(bench.fresh())
            found.append(await enter(api(stage, settings, "release", unpacked(release, bench.folder))))
        found.append(await enter(_database(stage)))
        found.append(_forwarder(stage, "limit", f"{stage.pods}/api", None))
        nginx = next((path for each in NGINX_PATHS if (path := shutil.which(each))), None)
        if nginx is not None:
            found.append(await enter(_nginx(stage, nginx)))
        yield found


def unpacked(wheel: Path, folder: Path) -> Path:
    """The folder of the programs of a wheel."""
    source = folder / "release"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(source)
    return source


@asynccontextmanager
async def api(
    stage: Stage, settings: Settings, name: str, source: Path = ROOT, **variables: str
) -> AsyncIterator[Contender]:
    """An API process of this source folder, with default settings and log level, whose agents are registered."""
    async with _application(stage, settings, name, ["podium", "api"], source, **variables) as found:
        yield found


@asynccontextmanager
async def another(
    stage: Stage, settings: Settings, podium: Contender, name: str, **variables: str
) -> AsyncIterator[Contender]:
    """A further API process on the same database, for the same requests."""
    port = free_ports([name])[name]
    env = _environment(settings, port, **variables)
    async with _listening_program(stage.bench, name, ["podium", "api"], env, port) as pid:
        jobs = {kind: {**job, "port": port} for kind, job in podium.jobs.items()}
        yield Contender(name, pid, stage.load, jobs)


@asynccontextmanager
async def _quieter(stage: Stage, settings: Settings, podium: Contender) -> AsyncIterator[Contender]:
    """Forwards calls at the log level `warning`."""
    async with another(stage, settings, podium, "warning", PODIUM_LOG_LEVEL="warning") as found:
        yield replace(found, jobs={"forwards": found.jobs["forwards"]})


@asynccontextmanager
async def _orm(stage: Stage) -> AsyncIterator[Contender]:
    module = f"{PEERS}.litestar_orm"
    async with (
        stage.bench.fresh() as settings,
        _application(stage, settings, "peer", [module, "{port}"], ROOT) as found,
    ):
        yield replace(found, jobs={kind: job for kind, job in found.jobs.items() if kind != "forwards"})


@asynccontextmanager
async def _httpx(stage: Stage) -> AsyncIterator[Contender]:
    port = free_ports(["httpx"])["httpx"]
    arguments = [f"{PEERS}.httpx_forwarder", str(port), f"{stage.pods}/api"]
    async with _listening_program(stage.bench, "httpx", arguments, {}, port) as pid:
        yield _forwarder(stage, "peer", f"http://127.0.0.1:{port}/rpc", pid)


@asynccontextmanager
async def _database(stage: Stage) -> AsyncIterator[Contender]:
    async with stage.bench.fresh() as settings:
        url = make_url(settings.database_url.get_secret_value()).set(drivername="postgresql")
        env = environment(settings, PEER_DATABASE_URL=url.render_as_string(hide_password=False))
        async with load_process("database_limit", env) as load:
            yield Contender("limit", None, load, {kind: {"kind": limit} for kind, limit in LIMITS.items()})


@asynccontextmanager
async def _nginx(stage: Stage, binary: str) -> AsyncIterator[Contender]:
    port, folder = free_ports(["nginx"])["nginx"], stage.bench.folder
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, agent=urlsplit(stage.pods).netloc, port=port))
    command = Command([binary, "-p", str(folder), "-c", str(configuration)], {}, folder)
    process = await start(Launch(command), ProcessContext(None, folder / "nginx.log"))
    try:
        await _listening(port)
        yield _forwarder(stage, "nginx", f"http://127.0.0.1:{port}/api", process.pid)
    finally:
        await process.stop()


def _forwarder(stage: Stage, name: str, url: str, pid: int | None) -> Contender:
    parts = urlsplit(url)
    requests = [[request("POST", parts.path, parts.netloc, CALL)]]
    return Contender(name, pid, stage.load, {"forwards": _job(parts.netloc, requests)})


@asynccontextmanager
async def _application(
    stage: Stage, settings: Settings, name: str, arguments: list[str], source: Path, **variables: str
) -> AsyncIterator[Contender]:
    port = free_ports([name])[name]
    env = _environment(settings, port, **variables) | {"PYTHONPATH": str(source), "PYTHONSAFEPATH": "1"}
    filled_in = [each.format(port=port) for each in arguments]
    async with _listening_program(stage.bench, name, filled_in, env, port, source) as pid:
        fleet = Fleet(await _fill(f"http://127.0.0.1:{port}", stage.pods), f"127.0.0.1:{port}", stage.pods)
        jobs = {kind: _job(fleet.host, make(fleet)) for kind, make in REQUESTS.items()}
        yield Contender(name, pid, stage.load, jobs)


@asynccontextmanager
async def _listening_program(
    bench: Bench, name: str, arguments: list[str], env: dict[str, str], port: int, source: Path = ROOT
) -> AsyncIterator[int]:
    """The process id of `python -m ARGUMENTS`, which listens; its output goes to a file."""
    command = Command([sys.executable, "-m", *arguments], env, source)
    process = await start(Launch(command), ProcessContext(None, bench.folder / f"{name}.log"))
    try:
        await _listening(port)
        yield process.pid
    finally:
        await process.stop()


def _job(host: str, requests: Any) -> dict[str, object]:
    name, _, port = host.partition(":")
    return {"host": name, "port": int(port), "requests": requests}


def _environment(settings: Settings, port: int, **variables: str) -> dict[str, str]:
    """At the default pool size and, if the variables do not say otherwise, the default log level."""
    url = make_url(settings.database_url.get_secret_value()).set(drivername="postgresql+asyncpg")
    env = environment(settings, PODIUM_PORT=str(port), PEER_DATABASE_URL=url.render_as_string(hide_password=False))
    del env["PODIUM_LOG_LEVEL"]
    return env | variables


async def _listening(port: int) -> None:
    async def answers() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await eventually(answers, f"something listens on port {port}")


async def _fill(url: str, pods: str) -> dict[str, str]:
    """Register all agents, each with its versions; returns their ids by name."""
    turn, ids = asyncio.Semaphore(AT_A_TIME), dict[str, str]()
    async with aiohttp.ClientSession(url) as client:

        async def announce(body: dict[str, object]) -> None:
            async with turn, client.post("/agents/register", json=body) as response:
                assert response.status == HTTPStatus.OK, await response.text()
                ids[str(body["name"])] = (await response.json())["id"]

        await asyncio.gather(*map(announce, all_announcements(pods)))
    return ids
