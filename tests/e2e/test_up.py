"""`podium up` and `podium demo`, started from the command line."""

import asyncio
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from podium.servers.ports import free_ports
from tests.support.factories import a_body
from tests.support.system_process import all_gone, line_with, output, podium, processes_of, up


@pytest.mark.timeout(240)  # four starts
async def test_up_keeps_its_state_however_it_ends(folder: Path) -> None:
    """It serves when it says so, and writes `podium.env`. Whatever ends it, the next start finds the state.

    After SIGTERM, SIGINT and SIGKILL, and when a part has ended, no process is left.
    """
    data_dir, port, mark = folder / "data", free_ports(["api"])["api"], uuid4().hex
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as client:

        async def register() -> dict[str, Any]:
            async with client.post(f"{url}/agents/register", json=a_body("bot", deployment_id="v1")) as response:
                registered: dict[str, Any] = await response.json()
                return {name: registered[name] for name in ("id", "agent_api_key", "generation")}

        async with up(data_dir, port, MARK=mark) as process:
            async with client.get(f"{url}/health/ready") as response:
                assert response.status == 200
            registered = await register()
            assert registered["generation"] == 1
            env = data_dir / "podium.env"
            assert stat.S_IMODE(env.stat().st_mode) == 0o600
            values = dict(line.split("=", 1) for line in env.read_text().splitlines())
            assert values.keys() == {"PODIUM_DATABASE_URL", "PODIUM_AMQP_URL", "PODIUM_API_URL", "PODIUM_SECRET_KEY"}
            assert values["PODIUM_API_URL"] == url

            second = await podium("up", "--data-dir", str(data_dir), "--port", str(free_ports(["api"])["api"]))
            assert "already running" in await output(second)
            assert second.returncode == 1

            process.send_signal(signal.SIGTERM)
            assert "Stopped." in await output(process)
            assert process.returncode == 0
        await all_gone(mark, str(data_dir))

        async with up(data_dir, port, MARK=mark) as process:
            assert await register() == registered
            (worker,) = processes_of(mark) & processes_of("podium\0worker")
            os.kill(worker, signal.SIGKILL)
            assert "The worker has ended." in await output(process)
            assert process.returncode == 1
        await all_gone(mark, str(data_dir))

        async with up(data_dir, port, MARK=mark) as process:
            assert await register() == registered
            assert len(processes_of(mark, str(data_dir))) > 4
            process.kill()
            await output(process)
        await all_gone(mark, str(data_dir))

        async with up(data_dir, port, MARK=mark) as process:
            assert await register() == registered
            process.send_signal(signal.SIGINT)
            await output(process)
            assert process.returncode == 0
    await all_gone(mark, str(data_dir))


async def test_a_port_in_use_is_reported_before_anything_starts(folder: Path) -> None:
    """The port is checked first, and the error names the option to change it."""
    listener = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        process = await podium("up", "--data-dir", str(folder / "data"), "--port", str(port))
        printed = await output(process)
    assert "--port" in printed
    assert process.returncode == 1
    assert not (folder / "data").exists()


async def test_the_demo_shows_its_steps_and_ends() -> None:
    """`podium demo` shows registration, promotion, preview, cutover and rollback with real pods within a minute."""
    mark, began = uuid4().hex, time.monotonic()
    process = await podium("demo", MARK=mark)
    printed = await output(process)
    assert process.returncode == 0, printed
    assert time.monotonic() - began < 60
    answers = [line.split("->")[1].strip() for line in printed.splitlines() if "->" in line]
    assert answers == [
        "Hello from hello-v1.",
        "Hello from hello-v1.",
        "Hello from hello-v2.",
        "hello-v2 is_production=True",
        "Hello from hello-v2.",
        "Hello from hello-v1.",
    ]
    assert printed.count("podium.deployment.promoted.v1") == 3
    await all_gone(mark)


async def test_an_interrupted_demo_leaves_nothing_behind() -> None:
    """Ctrl-C ends all processes, and the exit code is 130."""
    mark = uuid4().hex
    process = await podium("demo", MARK=mark)
    await line_with(process, "2. A pod of hello-v2")
    process.send_signal(signal.SIGINT)
    await output(process)
    assert process.returncode == 130
    await all_gone(mark)
