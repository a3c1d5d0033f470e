"""An unchanged agent and unchanged clients of the A2A SDK. The clients know only the card that Podium serves."""

from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from podium.servers.ports import free_ports
from services.settings import Settings
from tests.support.factories import a_body
from tests.support.processes import api_process
from tests.support.sdk_environment import INSTALL_SECONDS, driven, sdk_pods

# The events of a streamed answer. The first version offers A2A 1.0 and 0.3, the second only 0.3.
STREAMED = ["task", "artifact_update", "artifact_update", "status_update"]
PROTOCOLS = {"a2a-v1": "1.0,0.3", "a2a-v2": "0.3"}


@pytest.mark.timeout(INSTALL_SECONDS + 180)
async def test_a2a_clients_work_from_the_card_alone(settings: Settings, tmp_path: Path, sdk_python: str) -> None:
    """With and without streaming, in both protocol versions, across a promote. All requests go to the gateway.

    The first version has three instances.
    """
    instances = {"a2a-v1": ("a", "b", "c"), "a2a-v2": ("a",)}
    ports = free_ports([f"{name}/{instance}" for name in PROTOCOLS for instance in instances[name]])
    async with AsyncExitStack() as stack:
        pods = {
            port: {"VERSION": name, "PORT": str(port), "PROTOCOLS": PROTOCOLS[name]}
            for name, port in ((pod.partition("/")[0], port) for pod, port in ports.items())
        }
        await stack.enter_async_context(sdk_pods(sdk_python, "a2a_pod.py", tmp_path, pods))
        url = await stack.enter_async_context(api_process(settings, tmp_path))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        for pod, port in ports.items():
            name, _, instance = pod.partition("/")
            where = {"acp_url": f"http://127.0.0.1:{port}", "rpc_path": "/rpc"}
            body = a_body("a2a-bot", deployment_id=name, instance_id=instance, **where)
            async with client.post(f"{url}/agents/register", json=body) as response:
                agent_id = (await response.json())["id"]
        seen = await driven(sdk_python, "drive_a2a.py", url, agent_id)

    by_name, preview = f"{url}/agents/name/a2a-bot", f"{url}/agents/{agent_id}/deployments/a2a-v2"
    cards = seen["cards"]
    assert [(each["url"], each["protocolBinding"]) for each in cards["name"]["supportedInterfaces"]] == [
        (f"{by_name}/rpc", "JSONRPC"),
        (f"{by_name}/rpc", "JSONRPC"),
    ]
    assert [each["protocolVersion"] for each in cards["preview"]["supportedInterfaces"]] == ["0.3"]
    assert (cards["name"]["version"], cards["preview"]["version"]) == ("a2a-v1", "a2a-v2")

    assert seen["streamed"] == {"events": STREAMED, "said": "a2a-v1 heard: one"}
    assert seen["sent"] == {"events": ["task"], "said": "a2a-v1 heard: two"}
    assert seen["preview"] == {"events": STREAMED, "said": "a2a-v2 heard: three"}
    assert seen["preview_sent"] == {"events": ["task"], "said": "a2a-v2 heard: four"}
    assert seen["streamed_after"]["said"] == "a2a-v2 heard: five"
    assert seen["sent_after"]["said"] == "a2a-v2 heard: six"
    assert seen["version_after"] == "a2a-v2"
    assert seen["fresh"]["said"] == "a2a-v2 heard: seven"

    expected_urls = {
        f"{place}{path}" for place in (by_name, preview) for path in ("/rpc", "/.well-known/agent-card.json")
    }
    assert {each["url"] for each in seen["asked"]} == expected_urls
    assert {each["version"] for each in seen["asked"]} >= {"1.0", "0.3"}
