"""`make bench-console`: the console with 10,000 agents, and with 500 pages open.

    python -m tests.benchmarks.console [--agents 10000] [--pages 500] [--seconds 60]

It ends with an error if the first page takes a second or more in the browser (median), or if the open pages cost a
tenth of a core while nothing changes. Every agent has counts of calls in each of the last 60 minutes.

Caveats: the browser, the servers and the API share one machine. SQL writes the rows. "First paint" is what the browser
reports, after a warm-up; the streams are those of pages, held open by a client without a browser.
"""

import argparse
import asyncio
import re
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from html import unescape
from pathlib import Path
from time import perf_counter

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from podium.servers import private_servers
from podium.servers.ports import free_ports
from services.storage.database import make_engine
from tests.benchmarks.measure import Bench
from tests.support.browser import chromium
from tests.support.processes import cpu_seconds, environment, program
from tests.support.waiting import eventually

SAMPLES = 9
FIRST_PAINT_SECONDS, IDLE_CORES = 1.0, 0.1
# The streams connect, and the API looks at the state for the first time, which wakes each page once.
SETTLE_SECONDS = 15.0

FILL = """
INSERT INTO agents (name, status, generation, event_seq)
    SELECT 'agent-' || n, 'Ready', 1, 4 FROM generate_series(1, :agents) AS n;
INSERT INTO deployments (id, agent_id, docker_image, status, status_changed_at, acp_url, is_production, registered_at,
    registered_message_id, first_registered_at, created_at, ready_at, promoted_at)
    SELECT name || '-v' || v, id, 'img:' || v, 'Ready', now(), 'http://10.0.0.1:8000', v = 1, now(),
        gen_random_uuid(), now(), now(), now(), CASE WHEN v = 1 THEN now() END
    FROM agents, generate_series(1, 3) AS v;
UPDATE agents SET production_deployment_id = name || '-v1';
INSERT INTO promotions (agent_id, generation, cause, actor, to_deployment_id, to_acp_url, at)
    SELECT id, 1, 'first', 'podium', name || '-v1', 'http://10.0.0.1:8000', now() FROM agents;
INSERT INTO call_counts (agent_id, minute, deployment_id, process_id, calls, agent_failures, gateway_failures, answered,
    answer_seconds, longest_seconds)
    SELECT id, date_trunc('minute', now()) - m * interval '1 minute', name || '-v1',
        '00000000-0000-4000-8000-000000000001', 20, 1, 0, 20, 2, 0.5
    FROM agents, generate_series(5, 44) AS m
"""

# The console's policy allows no `eval`, which waiting for an expression would need.
FIRST_PAINT = """new Promise(done => new PerformanceObserver(list => {
    const paint = list.getEntriesByName('first-contentful-paint')[0];
    if (paint) done(paint.startTime);
}).observe({type: 'paint', buffered: true}))"""

console = Console()


async def fill(engine: AsyncEngine, agents: int) -> None:
    """Write the rows, and let the planner know them."""
    async with engine.begin() as connection:
        for statement in FILL.split(";\n"):
            await connection.execute(text(statement), {"agents": agents} if ":agents" in statement else {})
    async with engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("ANALYZE"))


async def first_paints(url: str) -> list[float]:
    """Seconds until the browser paints the first page, from its address on."""
    found = []
    async with chromium() as browser:
        for _ in range(SAMPLES + 1):
            page = await browser.new_page()
            await page.goto(f"{url}/console/agents")
            found.append(float(await page.evaluate(FIRST_PAINT)) / 1000)
            await page.close()
    return found[1:]


async def reads(url: str) -> list[float]:
    """Seconds for the first page without a browser."""
    found = []
    async with aiohttp.ClientSession() as client:
        for _ in range(SAMPLES + 1):
            began = perf_counter()
            async with client.get(f"{url}/console/agents") as answer:
                await answer.read()
            found.append(perf_counter() - began)
    return found[1:]


async def live_path(client: aiohttp.ClientSession, page: str) -> str:
    """The stream that a page follows."""
    async with client.get(page) as answer:
        [path] = re.findall('sse-connect="([^"]+)"', await answer.text())
    return unescape(path)


async def idle_cores(url: str, pid: int, pages: int, seconds: float) -> tuple[float, int]:
    """How many cores the API uses while so many pages are open, and how many of these were told to read again."""
    changes = 0
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))

        async def follow(path: str) -> None:
            nonlocal changes
            async with client.get(f"{url}{path}", raise_for_status=True) as stream:
                async for line in stream.content:
                    changes += line.startswith(b"event: change")

        paths = [await live_path(client, f"{url}{page}") for page in ("/console/agents", "/console/registrations")]
        tasks = [asyncio.create_task(follow(paths[number % len(paths)])) for number in range(pages)]
        await asyncio.sleep(SETTLE_SECONDS)
        changes = 0
        before, began = cpu_seconds(pid), perf_counter()
        await asyncio.sleep(seconds)
        used = (cpu_seconds(pid) - before) / (perf_counter() - began)
        ended = [task for task in tasks if task.done()]
        assert not ended, f"{len(ended)} streams ended: {ended[0]}"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return used, changes


async def measure(folder: Path, *, agents: int, pages: int, seconds: float) -> bool:
    """Measure everything and print it; whether both targets are met."""
    async with private_servers(folder / "servers") as servers, Bench(servers, folder).fresh() as settings:
        engine = make_engine(settings, application_name="bench", pool_size=2)
        with console.status(f"writing {agents:,} agents ..."):
            await fill(engine, agents)
        port = free_ports(["api"])["api"]
        url, variables = f"http://127.0.0.1:{port}", environment(settings, PODIUM_PORT=str(port))
        async with program("podium api", variables, folder / "api.log") as api:

            async def answers() -> bool:
                return await is_up(url)

            await eventually(answers, "the API answers")
            with console.status("opening the first page ..."):
                paints, plain = await first_paints(url), await reads(url)
            with console.status(f"holding {pages} pages open ..."):
                used, changes = await idle_cores(url, api.pid, pages, seconds)
        await engine.dispose()
    paint = statistics.median(paints)
    table = Table("what", "measured", "target")
    table.add_row(f"first paint with {agents:,} agents, median", f"{paint:.2f} s", f"< {FIRST_PAINT_SECONDS:g} s")
    table.add_row("the longest of them", f"{max(paints):.2f} s", "")
    table.add_row("the page without a browser, median", f"{statistics.median(plain):.3f} s", "")
    table.add_row(f"{pages} open pages, nothing changes", f"{used:.3f} cores", f"< {IDLE_CORES:g} cores")
    table.add_row("pages that were told to read again", str(changes), "0")
    console.print(table)
    return paint < FIRST_PAINT_SECONDS and used < IDLE_CORES and not changes


async def is_up(url: str) -> bool:
    """Whether the API is ready."""
    try:
        async with aiohttp.ClientSession() as client, client.get(f"{url}/health/live") as answer:
            return answer.ok
    except aiohttp.ClientError:
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure with the numbers of the command line; ends with 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--pages", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60.0)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="podium-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers' unprivileged account must be able to enter it
        work = measure(folder, agents=chosen.agents, pages=chosen.pages, seconds=chosen.seconds)
        raise SystemExit(0 if uvloop.run(work) else 1)


if __name__ == "__main__":
    main()
