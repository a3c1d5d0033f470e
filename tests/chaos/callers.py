"""Clients of the API that record each response and fail if one takes too long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import aiohttp

from tests.chaos.system import System
from tests.support.processes import api_process

ANSWER_SECONDS = 10


class Callers:
    """Calls an API, and records each response's status and the longest response time."""

    def __init__(self, url: str, web: aiohttp.ClientSession) -> None:
        self._url, self._web = url, web
        self.answers: list[int] = []
        self.slowest = 0.0

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body of a response; checks that it is not a 500, and that a 503 has `retry-after`."""
        began = monotonic()
        async with asyncio.timeout(ANSWER_SECONDS), self._web.request(method, self._url + path, json=body) as response:
            answer = await response.json()
        self.slowest = max(self.slowest, monotonic() - began)
        self.answers.append(response.status)
        assert response.status != 500, answer
        if response.status == 503 and path != "/health/ready":
            assert int(response.headers["retry-after"]) > 0
        return response.status, answer

    async def promote_back_and_forth(self, agent: dict[str, Any]) -> None:
        """Promote v1, then v2, then read the agent."""
        for deployment in ("v1", "v2"):
            await self.call("POST", f"/agents/{agent['id']}/deployments/{deployment}/promote")
        await self.call("GET", f"/agents/{agent['id']}")

    async def until(self, seconds: float, agent: dict[str, Any]) -> None:
        """Call the API in a loop for this many seconds."""
        end = monotonic() + seconds
        while monotonic() < end:
            await self.promote_back_and_forth(agent)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def callers_of(system: System, **more: str) -> AsyncIterator[Callers]:
    """Clients of an API, with a worker process."""
    async with (
        system.worker(PODIUM_PUBLISH_TIMEOUT="2"),
        api_process(system.settings, system.folder, **more) as url,
        # A connection per call: the server may close a kept connection just when it is used again.
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as web,
    ):
        await system.until_logged("relay.started")
        yield Callers(url, web)
