import asyncio
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractConnection

from contracts import topology
from services.registration.signatures import signing_key
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.workers.conftest import working
from tests.support.processes import ROOT
from tests.support.waiting import eventually_rows
from workers.amqp.topology import declare
from workers.runner import run_registrar

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node example with what its lock file names, installed as its comment says."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("the Node example runs where node and npm are installed")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "publish.mjs"):
        shutil.copy(EXAMPLES / name, folder)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)  # noqa: S607 - whichever npm the developer has
    return folder


@pytest.fixture(params=["python", "node"])
def command(request: pytest.FixtureRequest) -> list[str]:
    """How the example is started, in each language."""
    if request.param == "python":
        return [sys.executable, "-m", "examples.publish"]
    return ["node", str(request.getfixturevalue("node_folder") / "publish.mjs")]


@asynccontextmanager
async def publishing(command: list[str], settings: Settings, name: str, key: str = "") -> AsyncIterator[Process]:
    """The example, announcing version v1 of this agent; ended if it has not ended by itself."""
    environment = {
        **os.environ,
        "PODIUM_AMQP_URL": settings.amqp_url.get_secret_value(),
        "AGENT_NAME": name,
        "AGENTEX_DEPLOYMENT_ID": f"{name}-v1",
        "ACP_URL": "http://10.0.0.7:8000",
        "PODIUM_AGENT_KEY": key,
    }
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=PIPE, stderr=STDOUT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def printed(process: Process, text: str) -> None:
    """Return once the example has printed this; fail with all that it printed if it ends before."""
    assert process.stdout is not None
    output = b""
    async with asyncio.timeout(20):
        while text not in output.decode():
            line = await process.stdout.readline()
            assert line, output.decode()
            output += line


@pytest.mark.usefixtures("registrar")
async def test_the_example_announces_a_version(command: list[str], settings: Settings, sessions: Sessions) -> None:
    """What it published is a Ready deployment in production, and it has ended with success."""
    name = f"example-{uuid4().hex[:8]}"
    async with publishing(command, settings, name) as process:
        await printed(process, f"Announced {name}.")
        assert await process.wait() == 0
    query = f"SELECT status, acp_url, is_production FROM deployments WHERE id = '{name}-v1'"
    assert await eventually_rows(sessions, query) == [("Ready", "http://10.0.0.7:8000", True)]


async def test_the_example_signs_with_its_agent_s_key(
    command: list[str], settings: Settings, sessions: Sessions, broker: AbstractConnection
) -> None:
    """G78: A registrar that requires signatures applies what the example publishes with its key."""
    del broker  # it has declared the queue
    name = f"example-{uuid4().hex[:8]}"
    key = signing_key(settings.secret_key.get_secret_value(), name)
    strict = settings.model_copy(update={"require_signed_announcements": True})
    async with working(run_registrar, strict), publishing(command, settings, name, key) as process:
        await printed(process, f"Announced {name}.")
        (row,) = await eventually_rows(sessions, "SELECT outcome FROM registrations")
    assert row.outcome == "Registered"


async def test_the_example_repeats_until_the_broker_takes_it(
    command: list[str], settings: Settings, broker: AbstractConnection
) -> None:
    """A broker without Podium's exchange, then one whose exchange leads nowhere, is no success; one message comes."""
    channel = await broker.channel()
    await channel.queue_delete(topology.REGISTRATIONS_QUEUE)
    await channel.exchange_delete(topology.REGISTRATIONS_EXCHANGE)
    async with publishing(command, settings, "late") as process:
        await printed(process, "Not announced yet")
        await channel.declare_exchange(topology.REGISTRATIONS_EXCHANGE, "topic", durable=True)
        await printed(process, "Not announced yet")
        await printed(process, "Not announced yet")
        await declare(settings)
        await printed(process, "Announced late.")
        assert await process.wait() == 0
    queue = await channel.get_queue(topology.REGISTRATIONS_QUEUE)
    assert queue.declaration_result.message_count == 1
    message = await queue.get(no_ack=True)
    assert message is not None
    assert message.routing_key == "agent.late"


def test_the_lock_file_of_the_node_example_names_no_place_to_download_from() -> None:
    """Each machine installs from the registry that it is set to use."""
    assert '"resolved"' not in (EXAMPLES / "package-lock.json").read_text()
