"""The cost of calls through Podium: calls per second of one API process, and the time added to each call.

    python -m tests.benchmarks.forwarding [--seconds 5]

Podium reads the route of each call from the database; the peers have a fixed route. The load, the agent, the servers
and the measured program share one machine, so the numbers compare programs.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import uvloop

from podium.servers import private_servers
from podium.servers.ports import free_ports
from services.settings import Settings
from tests.benchmarks.measure import PEERS, Bench
from tests.support.factories import a_body
from tests.support.processes import ROOT, api_process, environment, program
from tests.support.waiting import eventually

SECONDS = 5.0
WARM_UP_SECONDS = 1.0
CONNECTIONS = 32
TURNS = 4
NGINX_PATHS = ("nginx", "/usr/sbin/nginx")
_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx-errors.log;
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_requests 10000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream agent {{ server {agent}; keepalive 64; keepalive_requests 10000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://agent; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
"""


async def forwarding(bench: Bench, seconds: float = SECONDS) -> dict[str, float]:
    """Calls per second on 32 connections through Podium, a Litestar handler with httpx, and nginx if it is installed.

    Also the milliseconds that Podium adds to a call on one connection: median and 99th percentile.
    """
    async with bench.fresh() as settings, AsyncExitStack() as stack:
        podium, agent = await stack.enter_async_context(_podium_and_agent(settings, bench.folder))
        httpx = await stack.enter_async_context(_httpx_forwarder(settings, bench.folder, agent))
        nginx = await stack.enter_async_context(_nginx(bench.folder, agent))
        forwarders = {"forwards": podium, "httpx_forwards": httpx, **({"nginx_forwards": nginx} if nginx else {})}
        called = await _in_turns(forwarders, CONNECTIONS, seconds)
        found = {name: len(milliseconds) / seconds for name, milliseconds in called.items()}
        alone = await _in_turns({"through": podium, "direct": agent}, 1, seconds)
    through, direct = (statistics.quantiles(alone[name], n=100) for name in ("through", "direct"))
    return {
        **found,
        "forward_added_p50_ms": through[49] - direct[49],
        "forward_added_p99_ms": through[98] - direct[98],
    }


@asynccontextmanager
async def _podium_and_agent(settings: Settings, folder: Path) -> AsyncIterator[tuple[str, str]]:
    """The URL of an agent through Podium, and its direct URL."""
    port = free_ports(["agent"])["agent"]
    agent = f"http://127.0.0.1:{port}/api"
    env = environment(settings)
    async with (
        program(f"{PEERS}.quick_agent {port}", env, folder / "agent.log"),
        api_process(settings, folder) as api,
        aiohttp.ClientSession() as client,
    ):
        body = a_body("bot", deployment_id="v1", acp_url=agent.removesuffix("/api"))
        async with client.post(f"{api}/agents/register", json=body) as response:
            assert response.status == 200, await response.text()
        yield f"{api}/agents/name/bot/rpc", agent


@asynccontextmanager
async def _httpx_forwarder(settings: Settings, folder: Path, agent: str) -> AsyncIterator[str]:
    port = free_ports(["httpx"])["httpx"]
    async with program(f"{PEERS}.httpx_forwarder {port} {agent}", environment(settings), folder / "httpx.log"):
        await _listening(port)
        yield f"http://127.0.0.1:{port}/rpc"


@asynccontextmanager
async def _nginx(folder: Path, agent: str) -> AsyncIterator[str | None]:
    """The URL of nginx in front of the agent; None if nginx is not installed."""
    binary = next((found for each in NGINX_PATHS if (found := shutil.which(each))), None)
    if binary is None:
        yield None
        return
    port = free_ports(["nginx"])["nginx"]
    address = agent.removeprefix("http://").removesuffix("/api")
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, agent=address, port=port))
    process = await asyncio.create_subprocess_exec(binary, "-p", str(folder), "-c", str(configuration))
    try:
        await _listening(port)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.terminate()
        await process.wait()


async def _listening(port: int) -> None:
    async def answers() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await eventually(answers, f"something listens on port {port}")


async def _in_turns(urls: dict[str, str], connections: int, seconds: float) -> dict[str, list[float]]:
    """The milliseconds of each call by URL. The URLs take turns, so that other load on the machine affects all."""
    found: dict[str, list[float]] = {name: [] for name in urls}
    for url in urls.values():
        await _load(url, connections, WARM_UP_SECONDS)
    for _ in range(TURNS):
        for name, url in urls.items():
            found[name] += await _load(url, connections, seconds / TURNS)
    return found


async def _load(url: str, connections: int, seconds: float) -> list[float]:
    """The milliseconds of each call, made by a separate process."""
    arguments = ["-m", f"{PEERS}.load", url, str(connections), str(seconds)]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), seconds + 60)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0
    milliseconds: list[float] = json.loads(printed)
    return milliseconds


async def _alone(folder: Path, seconds: float) -> dict[str, float]:
    async with private_servers(folder / "servers") as servers:
        return await forwarding(Bench(servers, folder), seconds)


def main(seconds: float) -> None:
    """Measure on private servers and print the figures."""
    with tempfile.TemporaryDirectory(prefix="podium-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' unprivileged account must be able to enter it
        found = uvloop.run(_alone(folder, seconds))
    found["forwards_beside_httpx"] = found["forwards"] / found["httpx_forwards"]
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the gateway and its peers.")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    main(parser.parse_args().seconds)
