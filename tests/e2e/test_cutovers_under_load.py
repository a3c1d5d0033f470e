"""Continuous calls through two API processes during many promotions.

CHAOS=long: 500 promotions under 300 calls a second, 1,000 streams. With `-s` the tests print their measurements.
"""

import asyncio
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from podium.servers.ports import free_ports
from services.settings import Settings
from tests.integration.api.pods import Handler, running_pod
from tests.support.factories import a_body
from tests.support.forked_programs import NEW_PROCESS
from tests.support.processes import environment, program
from tests.support.waiting import eventually

LONG = os.environ.get("CHAOS") == "long"
PROMOTES, CALLS_PER_SECOND, STREAMS = (500, 300, 1000) if LONG else (40, 120, 200)
STREAMS_ACROSS_PROMOTES = 10


@dataclass
class Traffic:
    """Calls and their results."""

    apis: list[str]
    client: aiohttp.ClientSession
    replied: int = 1
    """The generation of the last promote with a reply."""
    statuses: Counter[int] = field(default_factory=Counter)
    stale: list[tuple[int, int]] = field(default_factory=list)
    served: dict[int, str] = field(default_factory=dict)
    """The version that answered at each generation."""

    async def call(self, number: int) -> None:
        """Make one call through one of the API processes."""
        replied = self.replied
        url = f"{self.apis[number % len(self.apis)]}/agents/name/bot/rpc"
        async with self.client.post(url, json={"id": number}) as response:
            version = await response.text()
            self.statuses[response.status] += 1
            if response.status == 200:
                generation = int(response.headers["x-podium-generation"])
                assert self.served.setdefault(generation, version) == version
                if generation < replied:
                    self.stale.append((replied, generation))

    async def keep_calling(self, until: asyncio.Event) -> None:
        """Make CALLS_PER_SECOND calls, without waiting for earlier answers."""
        began, tasks = perf_counter(), set()
        number = 0
        while not until.is_set():
            while number < (perf_counter() - began) * CALLS_PER_SECOND:
                tasks.add(asyncio.create_task(self.call(number)))
                number += 1
            tasks -= {task for task in tasks if task.done() and not task.result()}
            await asyncio.sleep(1 / CALLS_PER_SECOND)
        await asyncio.gather(*tasks)


def named(version: str, finish: asyncio.Event) -> Handler:
    """A pod that answers POST with its name and streams for GET until `finish` is set."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST":
            return web.Response(text=version)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(f"{version} began ".encode())
        await finish.wait()
        await response.write(f"{version} ended".encode())
        return response

    return answer


@pytest.mark.timeout(900 if LONG else 240)
async def test_no_call_fails_or_reaches_the_old_version_after_a_promote(
    two_apis: list[str], client: aiohttp.ClientSession
) -> None:
    """No call sent after the reply to a promote reaches the old version; open streams stay with their version."""
    finish = asyncio.Event()
    async with running_pod(named("v1", finish)) as one, running_pod(named("v2", finish)) as two:
        for version, pod in (("v1", one), ("v2", two)):
            agent = await register(client, two_apis[0], "bot", version, pod.url)
        streams = [
            asyncio.create_task(read(client, f"{two_apis[number % 2]}/agents/name/bot/rpc"))
            for number in range(STREAMS_ACROSS_PROMOTES)
        ]

        async def all_began() -> bool:
            return len(one.seen) == STREAMS_ACROSS_PROMOTES

        await eventually(all_began, "the streams began")
        traffic, over = Traffic(two_apis, client), asyncio.Event()
        calling = asyncio.create_task(traffic.keep_calling(over))
        began, milliseconds = perf_counter(), []
        for number in range(PROMOTES):
            target = "v2" if number % 2 == 0 else "v1"
            sent = perf_counter()
            url = f"{two_apis[number // 2 % 2]}/agents/{agent['id']}/deployments/{target}/promote"
            async with client.post(url) as response:
                assert response.status == 200, await response.text()
                traffic.replied = int(response.headers["x-podium-generation"])
                traffic.served.setdefault(traffic.replied, target)
            milliseconds.append((perf_counter() - sent) * 1000)
            await asyncio.sleep(0.02)
        seconds = perf_counter() - began
        over.set()
        await calling
        finish.set()
        ends = await asyncio.gather(*streams)

    quantiles = statistics.quantiles(milliseconds, n=100)
    measured = {
        "promotes": PROMOTES,
        "calls": traffic.statuses.total(),
        "calls_per_second": round(traffic.statuses.total() / seconds),
        "promote_p50_ms": round(quantiles[49], 1),
        "promote_p99_ms": round(quantiles[98], 1),
    }
    sys.stdout.write(f"\n{json.dumps(measured)}\n")
    assert set(traffic.statuses) == {200}, traffic.statuses
    assert traffic.stale == []
    assert traffic.replied == PROMOTES + 1
    assert set(ends) == {"v1 began v1 ended"}
    assert len(set(traffic.served.values())) == 2
    assert traffic.statuses.total() > PROMOTES


@pytest.mark.timeout(300)
async def test_many_open_streams(settings: Settings, tmp_path: Path, client: aiohttp.ClientSession) -> None:
    """Other calls still get answers, each stream uses little memory, and each stream ends complete."""
    finish = asyncio.Event()
    async with running_pod(named("v1", finish)) as pod, api_with_pid(settings, tmp_path) as (api, pid):
        await register(client, api, "bot", "v1", pod.url)
        url = f"{api}/agents/name/bot/rpc"
        await asyncio.gather(*(post(client, url) for _ in range(20)))
        before = resident_kib(pid)
        streams = [asyncio.create_task(read(client, url)) for _ in range(STREAMS)]

        async def all_open() -> bool:
            async with client.get(f"{api}/metrics") as response:
                return f"podium_rpc_under_way {float(STREAMS)}" in await response.text()

        await eventually(all_open, f"{STREAMS} streams are open", seconds=60)
        each = (resident_kib(pid) - before) / STREAMS
        assert await post(client, url) == "v1"
        finish.set()
        assert set(await asyncio.gather(*streams)) == {"v1 began v1 ended"}
    sys.stdout.write(f"\n{json.dumps({'streams': STREAMS, 'kib_each': round(each, 1)})}\n")
    # Several times the measured value; an additional buffer per stream would exceed it.
    assert each < 500


async def register(client: aiohttp.ClientSession, api: str, name: str, version: str, address: str) -> dict[str, Any]:
    """Register a pod of one version; returns the agent from the response."""
    async with client.post(f"{api}/agents/register", json=a_body(name, deployment_id=version, acp_url=address)) as got:
        assert got.status == 200, await got.text()
        agent: dict[str, Any] = await got.json()
        return agent


async def read(client: aiohttp.ClientSession, url: str) -> str:
    """Read a stream to its end."""
    async with client.get(url) as response:
        return await response.text()


async def post(client: aiohttp.ClientSession, url: str) -> str:
    """Make a short call; returns the answer."""
    async with client.post(url, json={}) as response:
        return await response.text()


@asynccontextmanager
async def api_with_pid(settings: Settings, folder: Path) -> AsyncIterator[tuple[str, int]]:
    """The base URL and the process id of a `podium api`."""
    port = free_ports(["api"])["api"]
    env = environment(settings, PODIUM_PORT=str(port), **NEW_PROCESS)
    async with program("podium api", env, folder / "api.log") as process:
        url = f"http://127.0.0.1:{port}"

        async def ready() -> bool:
            assert process.code is None, (folder / "api.log").read_text()
            try:
                async with aiohttp.ClientSession() as client, client.get(f"{url}/health/ready") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(ready, "the API is ready")
        yield url, process.pid


def resident_kib(pid: int) -> int:
    """The resident memory of the process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmRSS:")]
    return int(line.split()[1])
