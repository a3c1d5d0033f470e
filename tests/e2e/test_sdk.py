"""The existing agentex SDK, unchanged: its pods register themselves and its client drives deployments."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from podium.servers.ports import free_ports
from podium.servers.process import Command, Launch, Surroundings, start
from services.database import Sessions
from services.settings import Settings
from tests.processes import ROOT, api_process
from tests.waiting import eventually_rows

LOCK = ROOT / "requirements-sdk.lock"
ENVIRONMENT = ROOT / ".venv-sdk"
STAMP = ENVIRONMENT / "lock.sha256"
PYTHONS = ("python3.12", "python3.13", "python3.14")
INSTALL_SECONDS = 540


def a_new_enough_python() -> str | None:
    """A Python that the SDK runs on, on the path or among those that pyenv keeps."""
    kept = sorted(Path.home().glob(".pyenv/versions/3.1[2-4].*/bin/python3"))
    for candidate in [*(found for name in PYTHONS if (found := shutil.which(name))), *map(str, kept)]:
        if subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


@pytest.fixture(scope="module")
def sdk_python() -> str:
    """The Python of an environment of the SDK's own, made from its lock file once."""
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    python = ENVIRONMENT / "bin" / "python"
    if not STAMP.exists() or STAMP.read_text() != wanted:
        base = a_new_enough_python()
        if base is None:
            pytest.skip("the agentex SDK needs Python 3.12 or newer, and this machine has none")
        subprocess.run([base, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(LOCK)]
        subprocess.run(install, check=True, timeout=INSTALL_SECONDS)
        STAMP.write_text(wanted)
    return str(python)


@pytest_asyncio.fixture
async def podium(settings: Settings, sessions: Sessions, tmp_path: Path, sdk_python: str) -> AsyncIterator[str]:
    """The URL of an API at which two pods of one agent have registered, one after the other."""
    ports = free_ports(["sdk-v1", "sdk-v2"])
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(api_process(settings, tmp_path))
        for deployment_id, port in ports.items():
            env = {
                **os.environ,
                "AGENTEX_BASE_URL": url,
                "AGENT_NAME": "sdk-bot",
                "AGENTEX_DEPLOYMENT_ID": deployment_id,
                "ACP_URL": "http://127.0.0.1",
                "ACP_PORT": str(port),
                "ACP_TYPE": "sync",
                "LITELLM_LOCAL_MODEL_COST_MAP": "true",  # else importing it asks the network for prices
            }
            command = Command([sdk_python, str(ROOT / "tests/sdk/pod.py")], env, tmp_path)
            pod = await start(Launch(command), Surroundings(None, tmp_path / f"{deployment_id}.log"))
            stack.push_async_callback(pod.kill)
            registered = f"SELECT 1 FROM deployments WHERE id = '{deployment_id}' AND status = 'Ready'"
            await eventually_rows(sessions, registered, seconds=60)
            await _listens(port)
        yield url


@pytest.mark.timeout(INSTALL_SECONDS + 120)
async def test_the_existing_sdk_works_unchanged(podium: str, sdk_python: str) -> None:
    """Pods of the SDK register themselves; its client lists, creates, retrieves, promotes, deletes and calls."""
    driver = await asyncio.create_subprocess_exec(
        sdk_python, str(ROOT / "tests/sdk/drive.py"), podium, "sdk-bot", "sdk-v1", "sdk-v2", stdout=subprocess.PIPE
    )
    printed, _ = await asyncio.wait_for(driver.communicate(), 60)
    assert driver.returncode == 0
    answers = json.loads(printed)
    agent = answers["agent"]
    assert (agent["name"], agent["status"], agent["acp_type"]) == ("sdk-bot", "Ready", "sync")
    assert agent["production_deployment_id"] == "sdk-v1"
    assert answers["retrieved"] == agent["id"]
    assert answers["agents"] == ["sdk-bot"]
    created = answers["created"]
    assert (created["status"], created["docker_image"], created["helm_release_name"]) == (
        "Pending",
        "registry/bot:3",
        "bot-3",
    )
    assert "sdk-v1 heard: ping" in answers["production_says"]
    assert "sdk-v2 heard: ping" in answers["preview_says"]
    promoted = answers["promoted"]
    assert (promoted["id"], promoted["is_production"], promoted["docker_image"]) == ("sdk-v2", True, "unknown")
    assert "sdk-v2 heard: ping" in answers["production_says_after"]
    assert answers["retrieved_deployment"]["promoted_at"] == promoted["promoted_at"]
    assert answers["deleted"]["id"] == "sdk-v1"
    assert answers["listed"] == ["sdk-v2", created["id"]]
    assert (answers["built"]["name"], answers["built"]["status"]) == ("built-bot", "BuildOnly")
    assert answers["agent_deleted"]["id"] == answers["built"]["id"]
    assert answers["missing"] == 404


async def _listens(port: int) -> None:
    """Wait until the pod's port answers: a pod of the SDK registers before it does."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return
