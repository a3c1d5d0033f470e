"""Agents in processes of their own that are killed and frozen under a gateway in a process of its own."""

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
# What a refused connection costs with its three more attempts, on a busy machine.
QUICK_SECONDS = 2
CALL = {"jsonrpc": "2.0", "id": 1, "method": "message/send"}
STREAM = {**CALL, "method": "message/stream"}

StartAgent = Callable[[str], Awaitable[GuardedProcess]]


@pytest_asyncio.fixture
async def api(settings: Settings, tmp_path: Path) -> AsyncIterator[str]:
    """A gateway that loses patience soon, and leaves an agent alone after three failures."""
    impatient = {
        "PODIUM_FIRST_BYTE_TIMEOUT": str(FIRST_BYTE_SECONDS),
        "PODIUM_BREAKER_FAILURES": "3",
        "PODIUM_BREAKER_PAUSE": "1",
    }
    async with api_process(settings, tmp_path, **impatient) as url:
        yield url


@pytest_asyncio.fixture
async def start_agent(
    settings: Settings, tmp_path: Path, api: str, client: aiohttp.ClientSession
) -> AsyncIterator[StartAgent]:
    """Starts an agent of this name, which is in production when it returns."""
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
    """Status, reason of a refusal, and seconds of one call."""
    began = perf_counter()
    async with client.post(f"{api}/agents/name/{name}/rpc", json=CALL) as response:
        answer = await response.json()
        return response.status, answer.get("error", {}).get("data"), perf_counter() - began


async def test_an_agent_that_dies(api: str, client: aiohttp.ClientSession, start_agent: StartAgent) -> None:
    """Its stream stays without an end; then it refuses, quickly, and is left alone; the other one is served as ever."""
    agent = await start_agent("bot")
    await start_agent("other")
    async with client.post(f"{api}/agents/name/bot/rpc", json=STREAM) as stream:
        assert (await stream.content.readany()).startswith(PIECE)
        os.kill(agent.pid, signal.SIGKILL)
        forged = False
        with suppress(aiohttp.ClientPayloadError):
            async with asyncio.timeout(10):
                await stream.content.read()
            forged = True
        assert not forged, "the stream was given an end that the agent did not send"

    verdicts = [await call(client, api, "bot") for _ in range(4)]
    assert [status for status, _, _ in verdicts] == [502, 502, 502, 503]
    assert [data["reason"] for _, data, _ in verdicts] == [*["agent-unreachable"] * 3, "breaker-open"]
    assert not any(data["sent"] for _, data, _ in verdicts)
    assert min(seconds for _, _, seconds in verdicts[:3]) < QUICK_SECONDS
    assert (await call(client, api, "other"))[0] == 200


async def test_an_agent_that_hangs(api: str, client: aiohttp.ClientSession, start_agent: StartAgent) -> None:
    """504 that names the timer; the other agent is served meanwhile, and this one again once it goes on."""
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
