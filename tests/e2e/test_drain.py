"""`podium drain` in a pipeline: it waits for the conversations of the old version, then its pods can be stopped."""

import asyncio
import sys
from pathlib import Path

import aiohttp

from services.settings import Settings
from tests.integration.api.pods import running_pod
from tests.support.factories import a_body
from tests.support.processes import ROOT, api_process, environment, worker_process

RPC = "/agents/name/bot/rpc"


async def podium(url: str, settings: Settings, *arguments: str) -> tuple[int, str]:
    """Run the command; returns its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "podium",
        *arguments,
        cwd=ROOT,
        env=environment(settings, PODIUM_API_URL=url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, printed.decode()


async def test_a_pipeline_waits_for_the_old_version(settings: Settings, tmp_path: Path) -> None:
    """Refused while it serves; a timeout has its own exit code; done when the last conversation has ended."""
    async with (
        running_pod() as pod,
        api_process(settings, tmp_path) as url,
        worker_process(settings, tmp_path, "janitor", PODIUM_PROBE_INTERVAL="60"),
        aiohttp.ClientSession(url) as client,
    ):
        for version in ("v1", "v2"):
            body = a_body("bot", deployment_id=version, acp_url=pod.url)
            async with client.post("/agents/register", json=body) as response:
                agent_id = (await response.json())["id"]

        async def set_idle(seconds: int) -> None:
            change = {"conversation_idle_seconds": seconds}
            async with client.patch(f"/agents/{agent_id}", json=change) as response:
                assert response.status == 200

        await set_idle(600)
        code, printed = await podium(url, settings, "drain", "bot", "v1", "--wait")
        assert code == 5, printed
        assert "promote another deployment first" in printed
        async with client.post(RPC, json={"id": 1}, headers={"x-podium-session": "mine"}) as response:
            assert response.headers["x-podium-deployment-id"] == "v1"
        async with client.post(f"/agents/{agent_id}/deployments/v2/promote") as response:
            assert response.status == 200
        code, printed = await podium(url, settings, "drain", "bot", "v1", "--wait", "--timeout", "1s")
        assert code == 3, printed
        assert "1 conversations are open" in printed
        async with client.post(RPC, json={"id": 1}, headers={"x-podium-session": "mine"}) as response:
            assert response.headers["x-podium-deployment-id"] == "v1"
        await set_idle(1)
        code, printed = await podium(url, settings, "drain", "bot", "v1", "--wait", "--timeout", "30s")
        assert code == 0, printed
        assert "its pods can be stopped" in printed
        async with client.post(RPC, json={"id": 1}, headers={"x-podium-session": "mine"}) as response:
            assert response.headers["x-podium-deployment-id"] == "v2"
