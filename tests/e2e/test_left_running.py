"""`podium up` under light traffic for a long time: memory and tables stay bounded, and a stop loses nothing.

CHAOS=long runs it for half an hour; otherwise it runs for some seconds.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import pytest

from podium.local.samples import SAMPLE_AGENT, VERSIONS
from podium.servers.ports import free_ports
from tests.support.factories import a_body
from tests.support.system_process import all_gone, output, processes_of, up
from tests.support.waiting import eventually

LONG = os.environ.get("CHAOS") == "long"
SECONDS = 1_800 if LONG else 16
# So short that most rows written during the test are removed before its end.
RETENTION_SECONDS = SECONDS / 8
ROUND_SECONDS = 0.2
SAMPLES = 20
PODS = 20
BOUNDED = ("outbox", "registrations")
# Caches fill and the allocator keeps some memory; a leak grows further.
GROWTH_ALLOWED = 24 * 2**20
MEBIBYTE = 2**20
pytestmark = pytest.mark.timeout(SECONDS + 240)


@dataclass
class Callers:
    """Light traffic, and the statuses of its responses."""

    url: str
    web: aiohttp.ClientSession
    statuses: Counter[int] = field(default_factory=Counter)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request; returns the JSON of the response."""
        async with self.web.request(method, f"{self.url}{path}", json=body) as response:
            self.statuses[response.status] += 1
            return await response.json(content_type=None)

    async def round(self, number: int, agent_id: str) -> None:
        """Call production and one version, register a pod, and promote in every tenth round."""
        call = {"jsonrpc": "2.0", "id": number, "method": "message/send", "params": {}}
        version = VERSIONS[number // 10 % len(VERSIONS)]
        await self.ask("POST", f"/agents/name/{SAMPLE_AGENT}/rpc", call)
        await self.ask("POST", f"/agents/{agent_id}/deployments/{version}/rpc", call)
        await self.ask("POST", "/agents/register", a_body(f"pod-{number % PODS}", deployment_id=f"v-{number % PODS}"))
        if number % 10 == 0:
            await self.ask("POST", f"/agents/{agent_id}/deployments/{version}/promote")

    async def both_versions_announced(self) -> bool:
        """Whether the sample agent has both its versions."""
        agent = await self.ask("GET", f"/agents/name/{SAMPLE_AGENT}")
        return "id" in agent and len(await self.ask("GET", f"/agents/{agent['id']}/deployments")) == len(VERSIONS)

    async def what_serves(self) -> dict[str, tuple[str | None, int]]:
        """What serves each agent, and at which generation."""
        agents = await self.ask("GET", "/agents?limit=1000")
        return {each["name"]: (each["production_deployment_id"], each["generation"]) for each in agents}


async def test_up_can_be_left_running(folder: Path) -> None:
    """Each call gets an answer, memory and tables stay bounded, and in the long form a restart finds the state."""
    data_dir, port, mark = folder / "data", free_ports(["api"])["api"], uuid4().hex
    settings = {
        "MARK": mark,
        "PODIUM_OUTBOX_RETENTION": str(RETENTION_SECONDS),
        "PODIUM_INBOX_RETENTION": str(RETENTION_SECONDS),
        "PODIUM_SWEEP_INTERVAL": "1",
    }
    async with aiohttp.ClientSession() as web:
        callers = Callers(f"http://127.0.0.1:{port}", web)
        async with up(data_dir, port, "--demo", **settings) as process:
            await eventually(callers.both_versions_announced, "both versions of the sample agent")
            callers.statuses.clear()
            figures = await _leave_running(callers, data_dir, mark)
            before = await callers.what_serves()
            process.send_signal(signal.SIGTERM)
            assert "Stopped." in await output(process)
            assert process.returncode == 0
        await all_gone(mark, str(data_dir))
        if LONG:  # as in test_up.py, on what half an hour has left
            async with up(data_dir, port, MARK=mark) as process:
                assert await callers.what_serves() == before
                process.send_signal(signal.SIGTERM)
                await output(process)
    assert set(callers.statuses) == {200}
    _check_growth(figures)
    print(f"{callers.statuses.total()} answers, all 200; {figures[0]} at first, {figures[-1]} at last")  # noqa: T201


async def _leave_running(callers: Callers, data_dir: Path, mark: str) -> list[Mapping[str, int]]:
    """Make calls for SECONDS; returns samples of memory and row counts."""
    agent_id = (await callers.ask("GET", f"/agents/name/{SAMPLE_AGENT}"))["id"]
    figures: list[Mapping[str, int]] = []
    began, number = monotonic(), 0
    while (spent := monotonic() - began) < SECONDS:
        next_round = monotonic() + ROUND_SECONDS
        await callers.round(number, agent_id)
        number += 1
        if spent > len(figures) * SECONDS / SAMPLES:
            figures.append({**_memory(mark), **await _row_counts(data_dir)})
        if (rest := next_round - monotonic()) > 0:
            await asyncio.sleep(rest)
    return figures


def _memory(mark: str) -> dict[str, int]:
    """Resident bytes of the API and of the worker."""
    found = {}
    for part in ("api", "worker"):
        (pid,) = processes_of(mark) & processes_of(f"podium\0{part}")
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        found[part] = pages * os.sysconf("SC_PAGE_SIZE")
    return found


async def _row_counts(data_dir: Path) -> dict[str, int]:
    values = dict(line.split("=", 1) for line in (data_dir / "podium.env").read_text().splitlines())
    connection = await asyncpg.connect(values["PODIUM_DATABASE_URL"])
    try:
        return {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in BOUNDED}
    finally:
        await connection.close()


def _check_growth(figures: list[Mapping[str, int]]) -> None:
    """Between the middle and the end, no bounded figure has grown."""
    middle, end = figures[len(figures) // 2], figures[-1]
    for part in ("api", "worker"):
        assert end[part] < middle[part] + GROWTH_ALLOWED, figures
    most = max(each["registrations"] for each in figures)
    written = SECONDS / ROUND_SECONDS
    assert 0 < most < written / 2, figures
    assert end["outbox"] > 0, figures
