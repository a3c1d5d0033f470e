"""The OpenAPI document: what it contains, and that the API does what it says."""

import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from api.http.openapi import PATH_PARAMETERS
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.generated import generated_requests
from tests.integration.api.pods import Pod
from tests.integration.api.test_conditions import operations

# About 1,500 requests, which take 20 s on an idle machine.
EXAMPLES = 5
# What an agent's own key reads.
OF_ONE_AGENT = r"/agents/(name/)?\{\w+\}(?!.*(rpc|well-known))"
PUBLIC = {"/health/live", "/health/ready", "/metrics", "/asyncapi"}
TAGS = {
    "Access",
    "Agents",
    "Deployments",
    "Registrations",
    "Parked messages",
    "Events",
    "Webhooks",
    "RPC",
    "Agent cards",
}


async def document_of(api: Api) -> dict[str, Any]:
    """The OpenAPI document, which is the same under both of its paths, however often they are read."""
    document: dict[str, Any] = (await api.get("/openapi.json")).json
    for path in ("/schema/openapi.json", "/schema/openapi.json", "/openapi.json"):
        assert (await api.get(path)).json == document
    return document


async def test_the_api_does_what_its_document_says(api: Api, pod: Pod, tmp_path: Path) -> None:
    """G52: generated requests, valid and invalid, get documented answers, and none gets a 500."""
    await api.register("bot", "v1", acp_url=pod.url)
    options = ["--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES)]
    printed = await generated_requests(api, *options, folder=tmp_path)
    tested = re.search(r"(\d+) generated", printed)
    assert tested is not None
    assert int(tested[1]) > 1000


async def test_every_operation_has_a_readable_name_and_one_tag(api: Api) -> None:
    """G52: ids such as `promote_deployment`, a summary, and the noun that the route is about."""
    document = await document_of(api)
    described = list(operations(document))
    names = [operation["operationId"] for _, _, operation in described]
    assert len(set(names)) == len(names) == 60
    assert {"promote_deployment", "list_agents", "delete_agent_by_name", "rpc_post", "roll_back_agent"} <= set(names)
    for path, method, operation in described:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", operation["operationId"]), (path, method)
        assert " " in operation["summary"], (path, method)
        assert len(operation["tags"]) == 1, (path, method)
    assert {operation["tags"][0] for _, _, operation in described} == {*TAGS, "Monitoring", "Documents"}


async def test_security_is_what_the_api_asks_for(api: Api, serve: Serve) -> None:
    """G52: public routes need none; without an API key nothing does; a registration also takes an agent's key."""
    keyed = await document_of(await serve(api_key=SecretStr("secret")))
    assert keyed["security"] == [{"bearer": []}, {"key": []}]
    assert (await document_of(api))["security"] == [{"bearer": []}, {"key": []}, {}]
    for path, method, operation in operations(keyed):
        if path in PUBLIC or path.startswith("/.well-known/"):
            assert operation["security"] == []
        elif path in {"/agents/register", "/agents/deregister"} or (method == "GET" and re.match(OF_ONE_AGENT, path)):
            assert operation["security"] == [{"agent_key": []}, {"bearer": []}, {"key": []}]
        else:
            assert "security" not in operation


async def test_parameters_and_headers_are_described(api: Api) -> None:
    """G52: patterns of paths, enums of lists, the headers of answers, and the body of an RPC."""
    document = await document_of(api)
    for path, method, operation in operations(document):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                assert parameter["schema"] == PATH_PARAMETERS[parameter["name"]][1], (path, method)
            assert "null" not in str(parameter["schema"]), (path, method)
        responses = operation["responses"]
        assert "503" not in responses or path == "/health/ready" or "retry-after" in responses["503"]["headers"]
        if path.startswith("/agents/") and path.endswith("/rpc"):
            assert "x-podium-deployment-id" in responses["default"]["headers"]
            assert (method == "POST") == ("requestBody" in operation)
    agents = document["paths"]["/agents"]["get"]
    order = next(each["schema"] for each in agents["parameters"] if each["name"] == "order_by")
    assert order["enum"] == ["created_at", "id", "name", "updated_at"]
    assert "x-podium-cursor" in agents["responses"]["200"]["headers"]
    promote = document["paths"]["/agents/{agent_id}/deployments/{deployment_id}/promote"]["post"]
    assert {"x-podium-generation", "ETag"} <= promote["responses"]["200"]["headers"].keys()
    threshold = document["components"]["schemas"]["ChangeAgentRequest"]["properties"]["probe_threshold"]
    assert {"minimum": 1, "maximum": 1000, "type": "integer"} in threshold["anyOf"]
    assert document["paths"]["/asyncapi"]["get"]["responses"]["200"]["content"]["application/json"]["schema"] == {
        "additionalProperties": {},
        "type": "object",
    }


async def test_options_names_all_methods(api: Api) -> None:
    """G52: `allow` of an answer to OPTIONS names the methods of the path."""
    methods: dict[str, set[str]] = {}
    for path, method, _ in operations(await document_of(api)):
        methods.setdefault(path, {"OPTIONS", *(["HEAD"] if path.startswith("/health/") else [])}).add(method)
    for path, allowed in methods.items():
        answer = await api.call("OPTIONS", path.replace("{", "").replace("}", ""))
        assert set(answer.headers["allow"].split(", ")) == allowed, path


async def test_an_id_with_a_newline_on_an_rpc_route(api: Api) -> None:
    """G52: the answer is a JSON-RPC error, as for every other id that does not exist."""
    for path in ("/agents/a%0Ab/rpc", "/agents/name/a%0Ab/rpc"):
        (await api.post(path, {"id": 1})).rpc_error(404, "agent-not-found")
