"""Three pods of one deployment and a gateway in separate processes; pods are killed and stopped under load.

No worker runs, so nothing but the calls themselves shows which pods are gone. CHAOS=long: 300 calls a second, and for
longer. With `-s` the tests print their measurements.
"""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
import pytest_asyncio

from podium.servers.ports import free_ports
from podium.servers.process import GuardedProcess
from services.settings import Settings
from services.storage.database import Sessions
from tests.support.factories import a_body
from tests.support.instances import Instances
from tests.support.processes import api_process, environment, program
from tests.support.unreachable import full_backlog
from tests.support.waiting import eventually

LONG = os.environ.get("CHAOS") == "long"
CALLS_PER_SECOND, SECONDS = (300, 10) if LONG else (120, 2)
NAMES = ("a", "b", "c")
PACE_MILLISECONDS = 20
FIRST_BYTE_SECONDS = 2
CONNECT_SECONDS = 1.5
BREAKER_FAILURES = 5


@dataclass(frozen=True)
class Ended:
    """One call that is over."""

    began: float
    ended: float
    status: int
    instance: str | None
    error: dict[str, Any] | None


@dataclass
class Traffic:
    """Calls at a steady rate, whether or not earlier ones have ended."""

    url: str
    client: aiohttp.ClientSession
    ended: list[Ended] = field(default_factory=list)

    async def run(self) -> None:
        """Call until cancelled; then wait for the calls in flight."""
        async with asyncio.TaskGroup() as group:
            with suppress(asyncio.CancelledError):
                while True:
                    group.create_task(self._call())
                    await asyncio.sleep(1 / CALLS_PER_SECOND)

    async def _call(self) -> None:
        began = perf_counter()
        async with self.client.post(self.url, json={"jsonrpc": "2.0", "id": 1}) as response:
            answer = await response.json()
        error = answer.get("error")
        named = response.headers.get("x-podium-instance-id")
        self.ended.append(Ended(began, perf_counter(), response.status, named, error and error["data"]))

    @property
    def failed(self) -> list[Ended]:
        """The calls that were not answered by an instance."""
        return [each for each in self.ended if each.status != 200]

    def since(self, moment: float) -> Counter[tuple[int, str | None]]:
        """How many calls that began after this moment got each status from each instance."""
        return Counter((each.status, each.instance) for each in self.ended if each.began > moment)


@dataclass
class Scene:
    """The gateway, three pods, and what the test does to them."""

    api: str
    client: aiohttp.ClientSession
    instances: Instances
    ports: dict[str, int]
    settings: Settings
    folder: Path
    stack: AsyncExitStack
    pods: dict[str, GuardedProcess] = field(default_factory=dict)

    @property
    def rpc(self) -> str:
        """The address that callers know."""
        return f"{self.api}/agents/name/bot/rpc"

    async def start(self, name: str) -> None:
        """Start a pod; return when it listens."""
        command = f"tests.e2e.paced_agent {self.ports[name]} {PACE_MILLISECONDS}"
        run = program(command, environment(self.settings), self.folder / f"{name}.log")
        self.pods[name] = await self.stack.enter_async_context(run)

        async def listens() -> bool:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.ports[name])
                writer.close()
                return True
            return False

        await eventually(listens, f"pod {name} listens")

    async def announce(self, *names: str) -> None:
        """Announce these instances at their own addresses."""
        await self.instances.add("v1", {name: f"http://127.0.0.1:{self.ports[name]}" for name in names})

    async def kill(self, name: str) -> float:
        """Kill a pod hard; returns when it was gone."""
        os.kill(self.pods[name].pid, signal.SIGKILL)

        async def gone() -> bool:
            return self.pods[name].code is not None

        await eventually(gone, f"pod {name} is gone")
        return perf_counter()

    async def metric(self, name: str) -> float:
        """The sum of a metric of the gateway over its labels."""
        async with self.client.get(f"{self.api}/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest_asyncio.fixture
async def scene(
    settings: Settings, sessions: Sessions, tmp_path: Path, client: aiohttp.ClientSession
) -> AsyncIterator[Scene]:
    """Three running pods of a deployment in production. An open breaker stays open for the rest of the test."""
    limits = {
        "PODIUM_FIRST_BYTE_TIMEOUT": str(FIRST_BYTE_SECONDS),
        "PODIUM_CONNECT_TIMEOUT": str(CONNECT_SECONDS),
        "PODIUM_BREAKER_FAILURES": str(BREAKER_FAILURES),
        "PODIUM_BREAKER_PAUSE": "60",
    }
    async with api_process(settings, tmp_path, **limits) as api, AsyncExitStack() as stack:
        scene = Scene(api, client, Instances(sessions), free_ports(NAMES), settings, tmp_path, stack)
        await asyncio.gather(*(scene.start(name) for name in NAMES))
        body = a_body("bot", deployment_id="v1", acp_url=f"http://127.0.0.1:{scene.ports['a']}")
        async with client.post(f"{api}/agents/register", json=body) as response:
            assert response.status == 200
        await scene.announce(*NAMES)
        yield scene


async def stopped(traffic: asyncio.Task[None]) -> None:
    """End the traffic; return when its last call has ended."""
    traffic.cancel()
    with suppress(asyncio.CancelledError):
        await traffic


async def test_one_of_three_is_killed(scene: Scene) -> None:
    """G64: only calls that were in it fail; the first refused connection keeps all later calls away from it."""
    traffic = Traffic(scene.rpc, scene.client)
    running = asyncio.create_task(traffic.run())
    await asyncio.sleep(SECONDS / 2)
    assert set(traffic.since(0)) == {(200, name) for name in NAMES}
    killed_at = perf_counter()
    dead_at = await scene.kill("a")
    await asyncio.sleep(SECONDS)
    await stopped(running)
    moved = await scene.metric("podium_rpc_failovers_total")
    in_flight = sum(each.began < dead_at and each.ended > killed_at for each in traffic.ended)
    sys.stdout.write(
        f"{len(traffic.ended)} calls at {CALLS_PER_SECOND}/s, {in_flight} in flight at the kill; "
        f"{len(traffic.failed)} failed; {moved:.0f} were refused and moved on\n"
    )
    for call in traffic.failed:
        assert call.error == {"reason": "agent-hung-up", "sent": True}
        assert call.began < dead_at
        assert call.ended > killed_at
    assert set(traffic.since(dead_at)) == {(200, "b"), (200, "c")}
    assert 1 <= moved <= 5
    assert await scene.metric("podium_rpc_breakers_open") == 1


async def test_two_of_three_hang(scene: Scene) -> None:
    """G62, G64: they get fewer calls than their two thirds, and none as soon as enough have timed out."""
    traffic = Traffic(scene.rpc, scene.client)
    running = asyncio.create_task(traffic.run())
    await asyncio.sleep(SECONDS / 2)
    stopped_at = perf_counter()
    for name in ("a", "b"):
        os.kill(scene.pods[name].pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(FIRST_BYTE_SECONDS + SECONDS)
        opened = perf_counter()
        await asyncio.sleep(1)
        await stopped(running)
    finally:
        for name in ("a", "b"):
            os.kill(scene.pods[name].pid, signal.SIGCONT)
    at_risk = sum(stopped_at < each.began < stopped_at + FIRST_BYTE_SECONDS for each in traffic.ended)
    sys.stdout.write(f"{at_risk} calls until the first timeout; {len(traffic.failed)} failed\n")
    assert {call.error["reason"] for call in traffic.failed if call.error} == {"first-byte-timeout"}
    # A third: when both are drawn. And a few each, until they have more calls in flight than the third.
    assert len(traffic.failed) / at_risk < 0.55
    assert set(traffic.since(opened)) == {(200, "c")}


async def test_two_of_three_are_cut_off(scene: Scene) -> None:
    """G64: no call fails, and each is answered within the time for connecting."""
    with full_backlog() as far, full_backlog() as away:
        await scene.instances.add("v1", {"a": far, "b": away})
        traffic = Traffic(scene.rpc, scene.client)
        running = asyncio.create_task(traffic.run())
        await asyncio.sleep(2 * CONNECT_SECONDS + SECONDS)
        await stopped(running)
    late = sum(each.ended - each.began > CONNECT_SECONDS / 4 for each in traffic.ended)
    slowest = max(each.ended - each.began for each in traffic.ended)
    sys.stdout.write(f"{len(traffic.ended)} calls at {CALLS_PER_SECOND}/s, {late} late, the slowest {slowest:.2f} s\n")
    assert set(traffic.since(0)) == {(200, "c")}
    assert slowest < CONNECT_SECONDS + 1
    assert late < len(traffic.ended) / 10
    assert await scene.metric("podium_rpc_breakers_open") == 2


async def test_all_are_gone_and_come_back(scene: Scene) -> None:
    """G65: calls are refused at once, with the reason; the first call after an announcement is answered."""
    traffic = Traffic(scene.rpc, scene.client)
    running = asyncio.create_task(traffic.run())
    await asyncio.sleep(SECONDS / 2)
    dead_at = max(await asyncio.gather(*(scene.kill(name) for name in NAMES)))
    await asyncio.sleep(SECONDS)
    refused = [each for each in traffic.failed if each.began > dead_at]
    await asyncio.gather(*(scene.start(name) for name in NAMES))
    await scene.announce("b")
    back_at = perf_counter()
    await asyncio.sleep(SECONDS / 2)
    await scene.announce("a", "c")
    all_back_at = perf_counter()
    await asyncio.sleep(SECONDS / 2)
    await stopped(running)
    reasons = Counter(each.error["reason"] for each in refused if each.error)
    sys.stdout.write(f"{len(traffic.ended)} calls; while all were gone: {dict(reasons)}\n")
    assert set(reasons) == {"agent-unreachable", "breaker-open"}
    assert not any(each.error["sent"] for each in refused if each.error)
    assert {key[0] for key in traffic.since(back_at)} == {200}
    assert set(traffic.since(all_back_at)) == {(200, name) for name in NAMES}
