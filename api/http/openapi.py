"""What the OpenAPI document says beyond what the framework derives from the handlers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from litestar.handlers import HTTPRouteHandler
from litestar.types import Method
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.http.access import Rule
from api.http.jsonrpc import is_rpc
from api.http.preconditions import GENERATION_HEADER
from contracts.fields import AGENT_NAME_PATTERN, DEPLOYMENT_ID_PATTERN

Json = dict[str, Any]

REF = "#/components/schemas/{model}"
JSON_RPC = "https://www.jsonrpc.org/specification"
METHODS = ("get", "head", "post", "patch", "delete")

_UUID = {"type": "string", "format": "uuid"}
PATH_PARAMETERS: dict[str, tuple[str, Json]] = {
    "agent_id": ("The id of the agent.", _UUID),
    "name": ("The name of the agent.", {"type": "string", "pattern": AGENT_NAME_PATTERN}),
    "deployment_id": ("The id of the deployment.", {"type": "string", "pattern": DEPLOYMENT_ID_PATTERN}),
    "key_id": ("The id of the key.", _UUID),
    "parked_id": ("The id of the parked message.", _UUID),
    "webhook_id": ("The id of the webhook.", _UUID),
}

# The answers with these schemas show the agent's generation in their headers.
_WITH_GENERATION = frozenset({"AgentAnswer", "RegisteredAgentAnswer", "DeploymentAnswer"})
_GENERATION_HEADERS = {
    GENERATION_HEADER: {"description": "The generation of the agent.", "schema": {"type": "integer", "minimum": 0}},
    "ETag": {
        "description": "The generation of the agent in quotes: send it as If-Match.",
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
    },
}
_CURSOR_HEADER = {
    "x-podium-cursor": {
        "description": "Every change that is not in this list has an event after this cursor of GET /events.",
        "schema": {"type": "string", "pattern": r"^[0-9]+\.[0-9]+$"},
    }
}
_RETRY_AFTER: Json = {
    "retry-after": {
        "description": "After how many seconds a retry may succeed.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_ERROR_HEADERS: dict[str, Json] = {
    "401": {"www-authenticate": {"description": "How to send a key.", "schema": {"type": "string"}}},
    "429": _RETRY_AFTER,
    "503": _RETRY_AFTER,
}
_RPC_BODY = {
    "description": f"A JSON-RPC 2.0 request ({JSON_RPC}) or whatever else the agent accepts; it is not parsed.",
    "required": False,
    "content": {"application/json": {"schema": {}}, "*/*": {"schema": {}}},
}
_RPC_ANSWER = {
    "description": "The answer of the agent, with its status, headers and body; or an error of the gateway as HTTP 200 "
    "for a deployment with the error style 'jsonrpc'.",
    "headers": {
        "x-podium-deployment-id": {
            "description": "The deployment that answered; missing if a legacy agent answered.",
            "schema": {"type": "string"},
        },
        "x-podium-instance-id": {
            "description": "The instance that answered; missing if its pod names none.",
            "schema": {"type": "string"},
        },
    },
    "content": {"*/*": {"schema": {}}},
}
_SHOULD_RETRY = {
    "x-should-retry": {
        "description": "'false' if the agent may have received the call.",
        "schema": {"type": "string", "enum": ["false"]},
    }
}


def operation_id(handler: HTTPRouteHandler, method: Method, _: object) -> str:
    """The name of the handler's function; with the method if the handler has several."""
    name = handler.handler_name
    return name if len(handler.http_methods) == 1 else f"{name}_{method.lower()}"


def completed(
    document: Json,
    requests: Sequence[type[BaseModel]],
    answers: Sequence[type[BaseModel]],
    rules: Mapping[tuple[str, str], Rule],
) -> Json:
    """The document with patterns of path parameters, headers of answers, RPC bodies, and the models' own schemas.

    The framework's schemas of models lack the constraints of optional fields.
    """
    for path, item in document["paths"].items():
        for method, operation in _operations(item):
            operation["summary"] = operation["operationId"].replace("_", " ").capitalize()
            _complete_security(operation, rules[path, method.upper()], document["security"])
            _complete_parameters(operation)
            _complete_answers(operation["responses"])
            if is_rpc(path):
                _complete_rpc(operation)
            if path == "/agents":
                operation["responses"]["200"]["headers"] |= _CURSOR_HEADER
        if is_rpc(path):
            item["post"]["requestBody"] = _RPC_BODY
    modes = [*((model, "validation") for model in requests), *((model, "serialization") for model in answers)]
    _, models = models_json_schema(modes, ref_template=REF)  # type: ignore[arg-type]
    document["components"]["schemas"].update(models["$defs"])
    return document


def _operations(item: Json) -> Iterator[tuple[str, Json]]:
    return ((method, item[method]) for method in METHODS if method in item)


def _complete_security(operation: Json, rule: Rule, of_all_routes: list[Json]) -> None:
    if rule.is_public:
        operation["security"] = []
        return
    if rule.agent_key:
        operation["security"] = [{"agent_key": []}, *of_all_routes]
    scopes = " or ".join(f"`{scope}`" for scope in rule.scopes)
    operation["description"] = f"{operation['description']}\n\nNeeds a key with the scope {scopes}."
    operation["x-podium-scopes"] = list(rule.scopes)


def _complete_parameters(operation: Json) -> None:
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            parameter["description"], parameter["schema"] = PATH_PARAMETERS[parameter["name"]]
        else:
            # A parameter of a query or header is a text; it can be missing, but not null.
            parameter["schema"] = _without_null(parameter["schema"])


def _without_null(schema: Json) -> Json:
    alternatives = [each for each in schema.get("oneOf", []) if each.get("type") != "null"]
    if len(alternatives) != 1:
        return schema
    return {**alternatives[0], **{name: value for name, value in schema.items() if name != "oneOf"}}


def _complete_answers(responses: Json) -> None:
    for status, response in responses.items():
        if "text/event-stream" in response.get("content", {}):
            # Tools disagree on whether this is the schema of the whole stream or of one event.
            response["content"]["text/event-stream"]["schema"] = {}
        headers = response.setdefault("headers", {})
        headers |= _ERROR_HEADERS.get(status, {})
        refs = [content["schema"].get("$ref", "") for content in response.get("content", {}).values()]
        if any(ref.rpartition("/")[2] in _WITH_GENERATION for ref in refs):
            headers |= _GENERATION_HEADERS


def _complete_rpc(operation: Json) -> None:
    responses = operation["responses"]
    del responses["200"]
    responses["default"] = _RPC_ANSWER
    for status in ("502", "504"):
        responses[status]["headers"] |= _SHOULD_RETRY
