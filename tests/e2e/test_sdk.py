"""The unchanged agentex SDK: its pods register themselves, and its client manages deployments."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from podium.servers.ports import free_ports
from services.settings import Settings
from services.storage.database import Sessions
from tests.support.factories import a_body
from tests.support.processes import api_process
from tests.support.sdk_environment import INSTALL_SECONDS, driven, sdk_pods
from tests.support.waiting import eventually_rows


@pytest_asyncio.fixture
async def podium(
    settings: Settings, sessions: Sessions, tmp_path: Path, sdk_python: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """The URL of an API with registered pods of one agent: three instances of version 1, and version 2."""
    ports = free_ports(["sdk-v1", "sdk-v1/b", "sdk-v1/c", "sdk-v2"])
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(api_process(settings, tmp_path))
        pods = {
            port: {
                "AGENTEX_BASE_URL": url,
                "AGENT_NAME": "sdk-bot",
                "AGENTEX_DEPLOYMENT_ID": name.partition("/")[0],
                "ACP_URL": "http://127.0.0.1",
                "ACP_PORT": str(port),
                "ACP_TYPE": "sync",
            }
            for name, port in ports.items()
        }
        # Without it, the import requests prices over the network.
        monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
        await stack.enter_async_context(sdk_pods(sdk_python, "pod.py", tmp_path, pods))
        await eventually_rows(sessions, "SELECT 1 FROM deployments WHERE status = 'Ready'", 2, seconds=60)
        # Pods of the SDK name no instance: each replaces the one before. A sidecar announces them by name.
        async with aiohttp.ClientSession() as client:
            for name, port in ports.items():
                where = {"acp_url": f"http://127.0.0.1:{port}", "instance_id": name.replace("/", "-")}
                body = a_body("sdk-bot", deployment_id=name.partition("/")[0], **where)
                async with client.post(f"{url}/agents/register", json=body) as response:
                    assert response.status == 200
        yield url


@pytest.mark.timeout(INSTALL_SECONDS + 120)
async def test_the_existing_sdk_works_unchanged(podium: str, sdk_python: str) -> None:
    """Pods of the SDK register themselves; its client lists, creates, retrieves, promotes, deletes and calls."""
    answers = await driven(sdk_python, "drive.py", podium, "sdk-bot", "sdk-v1", "sdk-v2")
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
