"""Unchanged servers and clients of MCP 2.x, and of 2.x with 1.x, with Podium between them.

Since its version 2026-07-28 the protocol has no sessions, and servers compare headers of a call with its body.
"""

from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from podium.servers.ports import free_ports
from services.settings import Settings
from tests.e2e.test_mcp import FIRST_BYTE_TIMEOUT, register
from tests.support.processes import api_process
from tests.support.sdk_environment import INSTALL_SECONDS, driven, sdk_pods

pytestmark = pytest.mark.timeout(2 * INSTALL_SECONDS + 180)

MODERN = "2026-07-28"
LATE = {"reason": "first-byte-timeout", "sent": True}


class Sdk(NamedTuple):
    """One major version of the SDK."""

    python: str
    server: str
    client: str


async def test_a_conversation_of_a_2x_client(settings: Settings, tmp_path: Path, mcp2_python: str) -> None:
    """G68: `x-podium-session` keeps a client at one of three instances, whose memory it uses, across a promote."""
    ports = free_ports(["new-v1/a", "new-v1/b", "new-v1/c", "new-v2/a"])
    async with AsyncExitStack() as stack:
        pods = {port: {"VERSION": name.partition("/")[0], "PORT": str(port)} for name, port in ports.items()}
        await stack.enter_async_context(sdk_pods(mcp2_python, "mcp2_pod.py", tmp_path, pods))
        apis = [await stack.enter_async_context(api_process(settings, tmp_path)) for _ in range(2)]
        for name, port in ports.items():
            version, _, instance = name.partition("/")
            agent_id = await register(apis[0], "new-bot", version, port, instance_id=instance)
        async with aiohttp.ClientSession() as client:
            change = {"affinity": "instance"}
            async with client.patch(f"{apis[0]}/agents/{agent_id}", json=change) as response:
                assert response.status == 200
        seen = await driven(mcp2_python, "drive_mcp2_conversation.py", *apis, agent_id)
    for part in (seen["before"], seen["after"]):
        assert part["versions"] == ["new-v1"] * 4
        assert part["reported"] == ["new-v1", [1, 2, 3]]
        assert part["heard"] == "ToolsListChanged"
        assert {entry["deployment"] for entry in part["journal"]} == {"new-v1"}
        assert len({entry["api"] for entry in part["journal"]}) == 2


async def test_2x_clients_and_servers_work_unchanged(settings: Settings, tmp_path: Path, mcp2_python: str) -> None:
    """G37: without a session, the next call after a promote reaches the new version; headers arrive once, unchanged."""
    ports = free_ports(["new-v1", "new-v2"])
    async with AsyncExitStack() as stack:
        pods = {port: {"VERSION": name, "PORT": str(port)} for name, port in ports.items()}
        await stack.enter_async_context(sdk_pods(mcp2_python, "mcp2_pod.py", tmp_path, pods))
        more = {"PODIUM_FIRST_BYTE_TIMEOUT": FIRST_BYTE_TIMEOUT}
        apis = [await stack.enter_async_context(api_process(settings, tmp_path, **more)) for _ in range(2)]
        agent_id = await register(apis[0], "new-bot", "new-v1", ports["new-v1"])
        await register(apis[0], "new-bot", "new-v2", ports["new-v2"], error_style="jsonrpc")
        await register(apis[0], "loud-bot", "loud-v1", ports["new-v2"])
        seen = await driven(mcp2_python, "drive_mcp2.py", *apis, agent_id)

    for part, version in ((seen["before"], "new-v1"), (seen["after"], "new-v2")):
        assert part["versions"] == [version] * 4
        assert part["reported"] == [version, [1, 2, 3]]
        assert part["heard"] == "ToolsListChanged"
        journal = part["journal"]
        assert {entry["deployment"] for entry in journal} == {version}
        assert len({entry["api"] for entry in journal}) == 2
        assert {entry["type"] for entry in journal} == {"application/json", "text/event-stream"}
        for headers, region in zip(part["headers"], ("eu", "=?base64?WsO8cmljaA==?="), strict=True):
            assert (
                headers["received"]
                == headers["sent"]
                == [
                    ["mcp-protocol-version", MODERN],
                    ["mcp-method", "tools/call"],
                    ["mcp-name", "headers"],
                    ["mcp-param-region", region],
                ]
            )
    assert seen["heard_of_old"] == "ToolsListChanged", "an open stream stays with its version"
    assert seen["failed"] == [{"error": LATE, "then": "new-v2"}] * 2, "with either error style only the call fails"


async def test_the_gateway_changes_nothing_between_versions(
    settings: Settings, tmp_path: Path, sdk_python: str, mcp2_python: str
) -> None:
    """G37: each client with each server sees the same through the gateway as directly, exchange by exchange."""
    old = Sdk(sdk_python, "mcp_pod.py", "converse_mcp.py")
    new = Sdk(mcp2_python, "mcp2_pod.py", "converse_mcp2.py")
    ports = free_ports([old.server, new.server])
    async with AsyncExitStack() as stack:
        for sdk in (old, new):
            port = ports[sdk.server]
            pods = {port: {"VERSION": "v1", "PORT": str(port)}}
            await stack.enter_async_context(sdk_pods(sdk.python, sdk.server, tmp_path, pods))
        api = await stack.enter_async_context(api_process(settings, tmp_path))
        await register(api, "old-bot", "old-v1", ports[old.server])
        await register(api, "new-bot", "new-v1", ports[new.server])

        for client, (server, name) in product((old, new), ((old, "old-bot"), (new, "new-bot"))):
            urls = [f"http://127.0.0.1:{ports[server.server]}/mcp", f"{api}/agents/name/{name}/rpc"]
            direct, through_gateway = await driven(client.python, client.client, *urls)
            assert through_gateway == direct, (client, server)
            assert {"report", "version"} <= set(direct["tools"])
            assert direct["version"] == "v1"
            assert direct["reported"] == ["v1", [1, 2, 3]]
            assert "no-such-tool" in direct["unknown"]
            both_are_new = client is server is new
            assert (direct["protocol"] == MODERN) is both_are_new
            assert any(exchange["in_session"] for exchange in direct["exchanges"]) is not both_are_new
