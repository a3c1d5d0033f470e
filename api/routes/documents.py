"""The OpenAPI document of the HTTP API and the AsyncAPI document of the messages.

Both are served as JSON only: pages that render OpenAPI load scripts from other hosts.
"""

from copy import deepcopy
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from litestar import Response, Router, get
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityRequirement, SecurityScheme
from pydantic import BaseModel

from api.http.access import PUBLIC, rules_of
from api.http.openapi import completed, operation_id
from api.http.parameters import AnyRequest
from api.http.problems import documented_public
from api.http.requests import ChangeAgentRequest, NewDeploymentRequest, PromoteRequest, RetryRequest, RollbackRequest
from api.http.responses import (
    AgentAnswer,
    DeletedAnswer,
    DeploymentAnswer,
    Problem,
    PromotionAnswer,
    Readiness,
    RegisteredAgentAnswer,
    RegistrationAnswer,
    RpcErrorAnswer,
)
from api.routes.audit import AuditAnswer
from api.routes.calls import CallsAnswer, CountAnswer, MinuteAnswer, VersionCallsAnswer
from api.routes.keys import IssuedKeyAnswer, KeyAnswer, NewKeyRequest, RotateKeyRequest
from api.routes.parked import ParkedAnswer, ParkedMessageAnswer, RetriedAnswer
from api.routes.webhooks import ANSWERS as WEBHOOK_ANSWERS
from api.routes.webhooks import REQUESTS as WEBHOOK_REQUESTS
from contracts.messages import RegisterAgentRequest, RegisterBuildRequest

REQUESTS: tuple[type[BaseModel], ...] = (
    ChangeAgentRequest,
    NewDeploymentRequest,
    NewKeyRequest,
    PromoteRequest,
    RegisterAgentRequest,
    RegisterBuildRequest,
    RetryRequest,
    RollbackRequest,
    RotateKeyRequest,
    *WEBHOOK_REQUESTS,
)
ANSWERS: tuple[type[BaseModel], ...] = (
    AgentAnswer,
    AuditAnswer,
    CallsAnswer,
    CountAnswer,
    DeletedAnswer,
    DeploymentAnswer,
    IssuedKeyAnswer,
    KeyAnswer,
    MinuteAnswer,
    ParkedAnswer,
    ParkedMessageAnswer,
    Problem,
    PromotionAnswer,
    Readiness,
    RegisteredAgentAnswer,
    RegistrationAnswer,
    VersionCallsAnswer,
    RetriedAnswer,
    RpcErrorAnswer,
    *WEBHOOK_ANSWERS,
)


class OpenApiRenderPlugin(JsonRenderPlugin):
    """Serves the document under /schema/openapi.json."""

    def render(self, request: AnyRequest, openapi_schema: dict[str, Any]) -> bytes:
        """The completed document. The framework keeps its own for the next request, so that is completed as a copy."""
        document = completed(deepcopy(openapi_schema), REQUESTS, ANSWERS, rules_of(request.app.routes))
        return super().render(request, document)


@get("/openapi.json", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def describe(request: AnyRequest) -> dict[str, Any]:
    """The OpenAPI document, at the path where pods of the existing SDK request it before they register."""
    return completed(request.app.openapi_schema.to_schema(), REQUESTS, ANSWERS, rules_of(request.app.routes))


@get(
    "/asyncapi",
    opt=PUBLIC,
    sync_to_thread=True,
    operation_id="read_messages",
    responses={
        **documented_public(),
        200: ResponseSpec(dict[str, object], description="AsyncAPI 3.0", generate_examples=False),
    },
)
def describe_messages() -> Response[bytes]:
    """The AsyncAPI document: registrations that pods publish, and events that Podium publishes."""
    return Response(files("contracts").joinpath("asyncapi.json").read_bytes(), media_type="application/json")


def openapi_config(*, key_required: bool) -> OpenAPIConfig:
    """The configuration of the OpenAPI document, also served under /schema."""
    security: list[SecurityRequirement] = [{"bearer": []}, {"key": []}]
    return OpenAPIConfig(
        title="Podium",
        version=version("podium"),
        description="The control plane for versioned deployments of AI agents.",
        use_handler_docstrings=True,
        operation_id_creator=operation_id,
        render_plugins=[OpenApiRenderPlugin()],
        openapi_router=Router("/schema", route_handlers=[], include_in_schema=False, opt=PUBLIC),
        components=Components(
            security_schemes={
                "bearer": SecurityScheme(type="http", scheme="bearer"),
                "key": SecurityScheme(type="apiKey", name="x-api-key", security_scheme_in="header"),
                "agent_key": SecurityScheme(type="apiKey", name="x-agent-api-key", security_scheme_in="header"),
            }
        ),
        security=security if key_required else [*security, {}],
    )


ROUTES = [describe, describe_messages]
