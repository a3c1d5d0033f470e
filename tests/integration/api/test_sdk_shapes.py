"""The requests of the existing client: HTTP 200 for each, also for creation."""

from typing import Any

import pytest

from tests.integration.api.client import Api
from tests.integration.api.pods import Pod

# Fields that the client's models require, and the words that it accepts.
AGENT_FIELDS = {"id", "acp_type", "created_at", "description", "name", "updated_at"}
DEPLOYMENT_FIELDS = {"id", "agent_id", "docker_image", "is_production", "status"}
# The client sends these with each request, with or without a body.
HEADERS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "Authorization": "Bearer some-key-that-nobody-asked-for",
    "X-Stainless-Lang": "python",
}


def pod_body(url: str, **fields: Any) -> dict[str, Any]:
    """The body that a pod built on the SDK posts."""
    return {
        "name": "sdk-bot",
        "description": "Generic description for agent: sdk-bot",
        "acp_url": url,
        "acp_type": "async",
        "principal_context": None,
        "registration_metadata": None,
        **fields,
    }


async def test_a_pod_reads_the_contract_version_first(api: Api) -> None:
    """`/openapi.json` carries a version that the SDK accepts, at least 0.1.0."""
    document = (await api.get("/openapi.json")).json
    assert tuple(map(int, document["info"]["version"].split("."))) >= (0, 1, 0)
    assert document["info"]["title"] == "Podium"


async def test_a_pod_registers_without_deployment_and_again(api: Api) -> None:
    """It gets its id, name and key; the second registration returns the same ones."""
    first = await api.post("/agents/register", pod_body("http://10.0.0.1:8000"))
    again = await api.post("/agents/register", pod_body("http://10.0.0.1:8000", agent_id=first.json["id"]))
    assert (first.status, again.status) == (200, 200)
    for key in ("id", "name", "agent_api_key"):
        assert first.json[key] == again.json[key]
    assert first.json["name"] == "sdk-bot"
    assert first.json["status"] == "Ready"
    assert first.json["acp_url"] == "http://10.0.0.1:8000"


async def test_a_pod_registers_a_deployment_with_metadata(api: Api) -> None:
    """The deployment stores all of it; the agent row does not change."""
    metadata = {"deployment_id": "v1", "commit_sha": "a" * 40, "agent_card": {"skills": [{"id": 1}]}}
    agent = (await api.post("/agents/register", pod_body("http://a:1", registration_metadata=metadata))).json
    deployment = (await api.get(f"/agents/{agent['id']}/deployments/v1")).json
    assert deployment["registration_metadata"] == metadata
    assert deployment["docker_image"] == "unknown"
    assert agent["registration_metadata"] is None
    assert agent["production_deployment_id"] == "v1"


async def test_agents(api: Api) -> None:
    """retrieve, retrieve_by_name, list, register_build, delete and delete_by_name."""
    built = await api.post(
        "/agents/register-build",
        {"name": "built", "description": "d", "agent_input_type": "text", "registration_metadata": {"a": 1}},
        headers=HEADERS,
    )
    agent = await api.register("bot")
    by_id = await api.get(f"/agents/{agent['id']}", headers=HEADERS)
    by_name = await api.get("/agents/name/bot", headers=HEADERS)
    query = "limit=10&page_number=1&order_by=created_at&order_direction=desc&task_id=t&agent_card_metadata=%7B%7D"
    listed = await api.get(f"/agents?{query}", headers=HEADERS)
    assert [each.status for each in (built, by_id, by_name, listed)] == [200] * 4
    assert built.json["status"] == "BuildOnly"
    assert by_id.json == by_name.json
    assert [each["name"] for each in listed.json] == ["bot", "built"]
    for answer in (built.json, by_id.json, *listed.json):
        assert answer.keys() >= AGENT_FIELDS
    deleted = await api.delete(f"/agents/{agent['id']}", headers=HEADERS)
    deleted_by_name = await api.delete("/agents/name/built", headers=HEADERS)
    for answer, expected in ((deleted, agent["id"]), (deleted_by_name, built.json["id"])):
        assert answer.status == 200
        assert answer.json.keys() == {"id", "message"}
        assert answer.json["id"] == expected


async def test_deployments(api: Api) -> None:
    """create, retrieve, list, promote (posted without any body) and delete."""
    agent = await api.register("bot", "v1")
    path = f"/agents/{agent['id']}/deployments"
    created = await api.post(
        path,
        {"docker_image": "r/i:1", "helm_release_name": "h", "registration_metadata": {"x": [1]}, "sgp_deploy_id": "s"},
        headers=HEADERS,
    )
    assert created.status == 200
    assert created.json["status"] == "Pending"
    assert created.json["helm_release_name"] == "h"
    await api.register("bot", "v2")
    retrieved = await api.get(f"{path}/v2", headers=HEADERS)
    listed = await api.get(f"{path}?limit=2&page_number=1&order_by=created_at&order_direction=desc", headers=HEADERS)
    promoted = await api.call("POST", f"{path}/v2/promote", headers=HEADERS)
    assert [each.status for each in (retrieved, listed, promoted)] == [200] * 3
    assert [each["id"] for each in listed.json] == ["v2", created.json["id"]]
    assert promoted.json["is_production"]
    for answer in (created.json, retrieved.json, promoted.json, *listed.json):
        assert answer.keys() >= DEPLOYMENT_FIELDS
    deleted = await api.delete(f"{path}/v1", headers=HEADERS)
    assert deleted.status == 200
    assert deleted.json.keys() == {"id", "message"}
    assert deleted.json["id"] == "v1"


@pytest.mark.parametrize("path", ["/agents/{id}/rpc", "/agents/name/bot/rpc", "/agents/{id}/deployments/v1/rpc"])
async def test_rpc(api: Api, pod: Pod, path: str) -> None:
    """rpc, rpc_by_name and preview_rpc."""
    agent = await api.register("bot", "v1", acp_url=pod.url)
    body = {"method": "message/send", "params": {"content": {"type": "text"}}, "id": 1, "jsonrpc": "2.0"}
    answer = await api.post(path.format(id=agent["id"]), body, headers=HEADERS)
    assert answer.status == 200
    assert answer.json["result"] == "ok"
    assert pod.seen[0].target == "/api"
