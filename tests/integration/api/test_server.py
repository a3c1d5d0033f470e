"""The API process: start and graceful shutdown."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import aiohttp
import pytest

from services.settings import Settings
from tests.integration.api.pods import pausing, running_pod
from tests.support.apps import serving
from tests.support.factories import a_body
from tests.support.waiting import eventually

PROGRAM = """
import asyncio
from api.app import serve
from services.settings import Settings
asyncio.run(serve(Settings()))
"""


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def api_process(settings: Settings, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """`serve` in a separate process."""
    environment = {
        **os.environ,
        "PODIUM_DATABASE_URL": settings.database_url.get_secret_value(),
        "PODIUM_SECRET_KEY": "secret",
        "PODIUM_PORT": str(port),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, env=environment)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_call_in_flight_ends_before_the_process(settings: Settings, number: signal.Signals) -> None:
    """After a signal it accepts no calls, finishes those in flight, and exits with 0."""
    finish = asyncio.Event()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with (
        running_pod(pausing(b"begun ", finish, b"ended")) as pod,
        api_process(settings, port) as process,
        aiohttp.ClientSession() as session,
        asyncio.timeout(30),
    ):

        async def answers() -> bool:
            with suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health/ready") as response:
                    return response.status == 200
            return False

        async def is_closed() -> bool:
            return not await answers()

        await eventually(answers, "the API is ready")
        async with session.post(f"{url}/agents/register", json=a_body("bot", acp_url=pod.url)) as registered:
            assert registered.status == 200
        async with session.post(f"{url}/agents/name/bot/rpc", json={}) as response:
            assert await response.content.readany() == b"begun "
            process.send_signal(number)
            await eventually(is_closed, "no more calls are taken")
            finish.set()
            assert await response.content.read() == b"ended"
        assert await process.wait() == 0


async def test_a_connection_that_was_accepted_at_the_end_takes_no_more_calls(settings: Settings) -> None:
    """While a call is in flight; it is not yet among the server's connections when these are shut down."""
    finish = asyncio.Event()
    patient = settings.model_copy(update={"port": 0, "drain_timeout": timedelta(seconds=20)})
    async with running_pod(pausing(b"begun ", finish, b"ended")) as pod, serving(patient) as server:
        host, _, port = server.addresses[0].rpartition(":")
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            async with session.post("/agents/register", json=a_body("bot", acp_url=pod.url)) as registered:
                assert registered.status == 200
            async with session.post("/agents/name/bot/rpc", json={}) as response:
                assert await response.content.readany() == b"begun "
                connections = server.server_state.connections
                before = set(connections)
                late, writer = await asyncio.open_connection(host, int(port))
                async with asyncio.timeout(10):
                    while not (accepted := connections - before):
                        await asyncio.sleep(0)
                    connections -= accepted
                    server.stop()
                    while server.servers[0].is_serving():
                        await asyncio.sleep(0)
                    connections |= accepted
                    assert await late.read() == b""
                writer.close()
                finish.set()
                assert await response.content.read() == b"ended"
