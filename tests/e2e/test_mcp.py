"""Unchanged servers and clients of the MCP SDK, with two API processes between them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from podium.servers.ports import free_ports
from services.settings import Settings
from tests.support.factories import a_body
from tests.support.processes import api_process
from tests.support.sdk_environment import INSTALL_SECONDS, driven, sdk_pods

# Long enough for a tool on a busy machine, shorter than the tool `hang`.
FIRST_BYTE_TIMEOUT = "PT8S"


async def register(url: str, name: str, deployment_id: str, port: int, **more: str) -> str:
    """Register a pod as `podium register` does; returns the id of the agent."""
    where = {"acp_url": f"http://127.0.0.1:{port}", "rpc_path": "/mcp"}
    body = a_body(name, deployment_id=deployment_id, **where, **more)
    async with aiohttp.ClientSession() as client, client.post(f"{url}/agents/register", json=body) as response:
        response.raise_for_status()
        return str((await response.json())["id"])


@pytest_asyncio.fixture
async def seen(settings: Settings, tmp_path: Path, sdk_python: str) -> AsyncIterator[Any]:
    """What the client received: from version 1, which answers with SSE, and from version 2, which answers with JSON.

    Version 1 has three instances, each with sessions in its own memory.
    """
    instances = ("mcp-v1", "mcp-v1-b", "mcp-v1-c")
    ports = free_ports([*instances, "mcp-v2"])
    async with AsyncExitStack() as stack:
        pods = {}
        for name, port in ports.items():
            version, answers = ("mcp-v2", "json") if name == "mcp-v2" else ("mcp-v1", "sse")
            pods[port] = {"VERSION": version, "PORT": str(port), "ANSWERS": answers}
        await stack.enter_async_context(sdk_pods(sdk_python, "mcp_pod.py", tmp_path, pods))
        apis = [
            await stack.enter_async_context(
                api_process(settings, tmp_path, PODIUM_FIRST_BYTE_TIMEOUT=FIRST_BYTE_TIMEOUT)
            )
            for _ in range(2)
        ]
        for name in instances:
            agent_id = await register(apis[0], "mcp-bot", "mcp-v1", ports[name], instance_id=name)
        await register(apis[0], "mcp-bot", "mcp-v2", ports["mcp-v2"], error_style="jsonrpc")
        await register(apis[0], "loud-bot", "loud-v1", ports["mcp-v2"])
        yield await driven(sdk_python, "drive_mcp.py", *apis, agent_id)


@pytest.mark.timeout(INSTALL_SECONDS + 180)
async def test_mcp_clients_and_servers_work_unchanged(seen: Any) -> None:
    """Sessions stay with their version across a promote and API processes; a failed call need not end a session."""
    promote = seen["promote"]
    assert promote["before"] == ["mcp-v1", "1"]
    assert promote["after"] == ["mcp-v1"] * 4
    assert promote["counted"] == "2", "the session's memory is still there"
    assert promote["progress"] == [1, 2, 3]
    assert promote["fresh"] == ["mcp-v2"] * 4
    assert promote["again"] == "mcp-v1"

    journal = promote["journal"]
    assert {entry["deployment"] for entry in journal} == {"mcp-v1"}
    assert len({entry["api"] for entry in journal}) == 2
    answers = {(entry["method"], entry["type"], entry["status"]) for entry in journal}
    assert ("POST", "text/event-stream", 200) in answers
    assert ("GET", "text/event-stream", 200) in answers
    assert journal[-1]["method"] == "DELETE"
    assert journal[-1]["status"] == 200
    of_new = promote["journal_of_new"]
    assert {entry["deployment"] for entry in of_new} == {"mcp-v2"}
    assert ("POST", "application/json") in {(entry["method"], entry["type"]) for entry in of_new}
    assert promote["ended"] == [404, "mcp-v2"], "an ended session is treated like an unknown one"

    headers = seen["headers"]
    assert headers["mcp-param-region"] == ["eu"]
    assert headers["x-custom"] == ["mine"]
    assert len(headers["mcp-session-id"]) == len(headers["mcp-protocol-version"]) == 1
    assert "authorization" not in headers

    late = {"reason": "first-byte-timeout", "sent": True}
    assert seen["as_answers"] == {"told": late, "then": "mcp-v2"}
    assert "lost" in seen["as_http"], "error_style is no longer needed: update the documentation"
