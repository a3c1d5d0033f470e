"""Agents and a gateway in separate processes; agents are killed and stopped during calls."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
import pytest_asyncio

from podium.servers.ports import free_ports
from podium.servers.process import GuardedProcess
from services.settings import Settings
from tests.e2e.talking_agent import PIECE
from tests.support.factories import a_body
from tests.support.processes import api_process, environment, program
from tests.support.waiting import eventually

FIRST_BYTE_SECONDS = 2
# A refused connection with its three retries takes less, even on a busy machine.
QUICK_SECONDS = 2
CALL = {"jsonrpc": "2.0", "id": 1, "method": "message/send"}
STREAM = {**CALL, "method": "message/stream"}

StartAgent = Callable[[str], Awaitable[GuardedProcess]]


@pytest_asyncio.fixture
async def api(settings: Settings, tmp_path: Path) -> AsyncIterator[str]:
    """A gateway with a short first-byte timeout and a circuit breaker that opens after three failures."""
    short_limits = {
        "PODIUM_FIRST_BYTE_TIMEOUT": str(FIRST_BYTE_SECONDS),
        "PODIUM_BREAKER_FAILURES": "3",
        "PODIUM_BREAKER_PAUSE": "1",
    }
    async with api_process(settings, tmp_path, **short_limits) as url:
        yield url


@pytest_asyncio.fixture
async def start_agent(
    settings: Settings, tmp_path: Path, api: str, client: aiohttp.ClientSession
) -> AsyncIterator[StartAgent]:
    """Starts an agent with this name; returns when it is in production."""
    async with AsyncExitStack() as stack:

        async def start(name: str) -> GuardedProcess:
            port = free_ports([name])[name]
            log = tmp_path / f"{name}.log"
            run = program(f"tests.e2e.talking_agent {port}", environment(settings), log)
            process = await stack.enter_async_context(run)

            async def listens() -> bool:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return True
                return False

            await eventually(listens, f"agent {name} listens")
            body = a_body(name, deployment_id=name, acp_url=f"http://127.0.0.1:{port}")
            async with client.post(f"{api}/agents/register", json=body) as response:
                assert response.status == 200
            return process

        yield start


async def call(client: aiohttp.ClientSession, api: str, name: str) -> tuple[int, Any, float]:
    """Status, error data and seconds of one call."""
    began = perf_counter()
    async with client.post(f"{api}/agents/name/{name}/rpc", json=CALL) as response:
        answer = await response.json()
        return response.status, answer.get("error", {}).get("data"), perf_counter() - began


async def test_an_agent_that_dies(api: str, client: aiohttp.ClientSession, start_agent: StartAgent) -> None:
    """Its stream breaks off. Further calls fail quickly, then the circuit breaker opens. The other agent serves."""
    agent = await start_agent("bot")
    await start_agent("other")
    async with client.post(f"{api}/agents/name/bot/rpc", json=STREAM) as stream:
        assert (await stream.content.readany()).startswith(PIECE)
        os.kill(agent.pid, signal.SIGKILL)
        completed = False
        with suppress(aiohttp.ClientPayloadError):
            async with asyncio.timeout(10):
                await stream.content.read()
            completed = True
        assert not completed, "the stream was completed although the agent did not end it"

    results = [await call(client, api, "bot") for _ in range(4)]
    assert [status for status, _, _ in results] == [502, 502, 502, 503]
    assert [data["reason"] for _, data, _ in results] == [*["agent-unreachable"] * 3, "breaker-open"]
    assert not any(data["sent"] for _, data, _ in results)
    assert min(seconds for _, _, seconds in results[:3]) < QUICK_SECONDS
    assert (await call(client, api, "other"))[0] == 200


async def test_an_agent_that_hangs(api: str, client: aiohttp.ClientSession, start_agent: StartAgent) -> None:
    """Calls get 504 with the name of the timeout. The other agent serves meanwhile; this one does after SIGCONT."""
    agent = await start_agent("bot")
    await start_agent("other")
    assert (await call(client, api, "bot"))[0] == 200
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        hanging = asyncio.create_task(call(client, api, "bot"))
        served = 0
        while not hanging.done():
            assert (await call(client, api, "other"))[0] == 200
            served += 1
            await asyncio.sleep(0.02)
        status, data, seconds = await hanging
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert (status, data) == (504, {"reason": "first-byte-timeout", "sent": True})
    assert seconds >= FIRST_BYTE_SECONDS
    assert served > 5

    async def works() -> bool:
        return (await call(client, api, "bot"))[0] == 200

    await eventually(works, "the agent is called again")
