"""Many open conversations while versions are promoted and rolled back, an API process is killed and pods restart.

CHAOS=long: 1,000 conversations. With `-s` the test prints its measurements.
"""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from podium.servers.ports import free_ports
from podium.servers.process import GuardedProcess
from services.settings import Settings
from services.storage.database import Sessions
from tests.chaos.size import LIMIT_SECONDS, LONG, SIZE
from tests.integration.api.pods import Handler, running_pod
from tests.support.factories import a_body
from tests.support.processes import environment, program, worker_process
from tests.support.waiting import eventually, eventually_rows, rows

CONVERSATIONS = 1_000 if SIZE is LONG else 90
AT_ONCE = 16
VERSIONS = ("v1", "v2", "v3")
RPC = "/agents/name/bot/rpc"
IDLE_SECONDS = 12 if SIZE is LONG else 6
DRAINED = "SELECT subject FROM outbox WHERE type = 'podium.deployment.drained.v1' ORDER BY sequence"

pytestmark = pytest.mark.timeout(LIMIT_SECONDS)


def saying(name: str) -> Handler:
    """A pod that answers every call with its name."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=name)

    return answer


@dataclass
class Scene:
    """The API processes that live, and the conversations that have begun."""

    client: aiohttp.ClientSession
    living: list[str]
    stack: AsyncExitStack
    agent_id: str = ""
    began: dict[str, str] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)

    @property
    def api(self) -> str:
        """One of them, in turn."""
        self.living.append(self.living.pop(0))
        return self.living[0]

    async def ready(self) -> bool:
        """Whether all of them are."""
        try:
            for url in self.living:
                async with self.client.get(f"{url}/health/ready") as response:
                    if response.status != 200:
                        return False
        except aiohttp.ClientError:
            return False
        return True

    async def announce(self, version: str, instance: str) -> None:
        """Start a new pod, and announce it in place of an earlier one."""
        pod = await self.stack.enter_async_context(running_pod(saying(version)))
        body = a_body("bot", deployment_id=version, instance_id=instance, acp_url=pod.url)
        async with self.client.post(f"{self.api}/agents/register", json=body) as response:
            assert response.status == 200
            self.agent_id = (await response.json())["id"]

    async def change(self, method: str, path: str = "", **body: object) -> None:
        """Change the agent."""
        async with self.client.request(method, f"{self.api}/agents/{self.agent_id}{path}", json=body) as response:
            assert response.status == 200, await response.text()

    async def call(self, key: str) -> str:
        """Which version answers a call of this conversation."""
        headers = {"x-podium-session": key}
        async with self.client.post(f"{self.api}{RPC}", json={"id": 1}, headers=headers) as response:
            assert response.status == 200, await response.text()
            assert "x-podium-session-moved" not in response.headers
            return await response.text()

    async def call_all(self, keys: list[str]) -> dict[str, str]:
        """The same for many conversations."""
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(key: str) -> tuple[str, str]:
            async with limit:
                return key, await self.call(key)

        return dict(await asyncio.gather(*(one(key) for key in keys)))

    async def begin(self, stage: str) -> None:
        """Begin a third of the conversations."""
        started = perf_counter()
        keys = [f"{stage}-{number}" for number in range(CONVERSATIONS // 3)]
        self.began.update(await self.call_all(keys))
        self.milliseconds.append((perf_counter() - started) / len(keys) * 1000)

    async def follow_up(self) -> None:
        """Call in every conversation that has begun: each reaches its version."""
        began = dict(self.began)
        assert await self.call_all(list(began)) == began


@pytest_asyncio.fixture
async def processes(settings: Settings, tmp_path: Path) -> AsyncIterator[dict[str, GuardedProcess]]:
    """Two API processes by their URLs, and a janitor."""
    async with AsyncExitStack() as stack:
        found = {}
        for port in free_ports(["first", "second"]).values():
            run = program("podium api", environment(settings, PODIUM_PORT=str(port)), tmp_path / f"api-{port}.log")
            found[f"http://127.0.0.1:{port}"] = await stack.enter_async_context(run)
        await stack.enter_async_context(worker_process(settings, tmp_path, "janitor", PODIUM_PROBE_INTERVAL="60"))
        yield found


@pytest_asyncio.fixture
async def scene(processes: dict[str, GuardedProcess]) -> AsyncIterator[Scene]:
    """An agent with three versions of three instances each; the first one serves."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with AsyncExitStack() as stack, aiohttp.ClientSession(connector=connector) as client:
        scene = Scene(client, list(processes), stack)
        await eventually(scene.ready, "both API processes are ready")
        for version in VERSIONS:
            for instance in ("a", "b", "c"):
                await scene.announce(version, instance)
        await scene.change("PATCH", conversation_idle_seconds=IDLE_SECONDS)
        yield scene


async def test_every_follow_up_reaches_its_version(
    scene: Scene, processes: dict[str, GuardedProcess], sessions: Sessions
) -> None:
    """G67, G68: across two promotes, a rollback, a killed API process and restarted instances; drained once each."""
    await scene.begin("one")
    assert set(scene.began.values()) == {"v1"}
    await scene.change("POST", "/deployments/v2/promote")
    await asyncio.gather(scene.follow_up(), scene.begin("two"))
    await scene.change("POST", "/deployments/v3/promote")
    killed = scene.living.pop()
    os.kill(processes[killed].pid, signal.SIGKILL)
    await asyncio.gather(scene.follow_up(), scene.begin("three"))
    await scene.change("POST", "/rollback")
    for version in VERSIONS:
        await scene.announce(version, "a")
    await scene.follow_up()
    counts = Counter(scene.began.values())
    assert set(counts) == set(VERSIONS), counts
    for _ in range(3):
        await asyncio.sleep(IDLE_SECONDS / 4)
        await scene.follow_up()
    assert await rows(sessions, DRAINED) == [], "drained while conversations are open"
    both = f"SELECT 1 FROM ({DRAINED}) AS drained HAVING count(*) = 2"
    await eventually_rows(sessions, both, seconds=4 * IDLE_SECONDS)
    sys.stdout.write(
        f"{len(scene.began)} conversations, {dict(counts)}; in the three stages, a first call took "
        f"{', '.join(f'{each:.1f}' for each in scene.milliseconds)} ms, {AT_ONCE} at once\n"
    )
    await asyncio.sleep(2)
    assert sorted(row.subject for row in await rows(sessions, DRAINED)) == ["v1", "v3"]
