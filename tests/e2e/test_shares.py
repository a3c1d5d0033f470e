"""How calls are divided between the instances of a deployment.

CHAOS=long: 10,000 calls, and a bound of 3 points. With `-s` the tests print the shares.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest_asyncio
from aiohttp import web

from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.api.pods import Handler, running_pod
from tests.support.factories import a_body
from tests.support.instances import Instances
from tests.support.processes import api_process

LONG = os.environ.get("CHAOS") == "long"
CALLS, POINTS = (10_000, 3) if LONG else (1_000, 6)
# Percent. In a short run on a busy machine, the quick ones are slow at times, too.
MOST_OF_SLOW = 25 / 2 if LONG else 20
CALLERS = 16
QUICK_SECONDS = 0.005
NAMES = ("a", "b", "c", "d")


@pytest_asyncio.fixture
async def api(settings: Settings, tmp_path: Path) -> AsyncIterator[str]:
    """A gateway."""
    async with api_process(settings, tmp_path) as url:
        yield url


def paced(seconds: float) -> Handler:
    """A handler that answers after this time."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": "ok"})

    return answer


async def shares(api: str, client: aiohttp.ClientSession, sessions: Sessions, seconds: list[float]) -> dict[str, float]:
    """The percentage of calls that each of four instances of this speed answered."""
    async with AsyncExitStack() as stack:
        pods = [await stack.enter_async_context(running_pod(paced(each))) for each in seconds]
        body = a_body("bot", deployment_id="v1", acp_url=pods[0].url)
        async with client.post(f"{api}/agents/register", json=body) as response:
            assert response.status == 200
        await Instances(sessions).add("v1", dict(zip(NAMES, (pod.url for pod in pods), strict=True)))
        found: Counter[str] = Counter()

        async def caller() -> None:
            for number in range(CALLS // CALLERS):
                async with client.post(f"{api}/agents/name/bot/rpc", json={"id": number}) as response:
                    assert response.status == 200
                    found[response.headers["x-podium-instance-id"]] += 1

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    answered = {name: 100 * found[name] / found.total() for name in NAMES}
    sys.stdout.write(f"{found.total()} calls: {answered}\n")
    return answered


async def test_equal_instances_get_equal_shares(api: str, client: aiohttp.ClientSession, sessions: Sessions) -> None:
    """G62: a quarter each."""
    found = await shares(api, client, sessions, [QUICK_SECONDS] * 4)
    assert all(abs(share - 25) < POINTS for share in found.values()), found


async def test_a_slow_instance_gets_less(api: str, client: aiohttp.ClientSession, sessions: Sessions) -> None:
    """G62: one that is ten times slower gets less than its share, and its siblings divide the rest evenly."""
    found = await shares(api, client, sessions, [10 * QUICK_SECONDS, *[QUICK_SECONDS] * 3])
    assert found["a"] < MOST_OF_SLOW, found
    rest = (100 - found["a"]) / 3
    assert all(abs(found[name] - rest) < POINTS for name in NAMES[1:]), found
