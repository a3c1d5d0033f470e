"""The OpenAPI document of the HTTP API and the AsyncAPI document of the messages.

Both are served as JSON only: pages that render OpenAPI load scripts from other hosts.
"""

from importlib.metadata import version
from importlib.resources import files
from typing import Any

from litestar import Response, Router, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from api.http.access import PUBLIC
from api.http.parameters import AnyRequest


@get("/openapi.json", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def describe(request: AnyRequest) -> dict[str, Any]:
    """The OpenAPI document, at the path where pods of the existing SDK request it before they register."""
    return request.app.openapi_schema.to_schema()


@get("/asyncapi", opt=PUBLIC, sync_to_thread=True)
def describe_messages() -> Response[bytes]:
    """The AsyncAPI document: registrations that pods publish, and events that Podium publishes."""
    return Response(files("contracts").joinpath("asyncapi.json").read_bytes(), media_type="application/json")


def openapi_config() -> OpenAPIConfig:
    """The configuration of the OpenAPI document, also served under /schema."""
    return OpenAPIConfig(
        title="Podium",
        version=version("podium"),
        description="The control plane for versioned deployments of AI agents.",
        use_handler_docstrings=True,
        render_plugins=[JsonRenderPlugin()],
        openapi_router=Router("/schema", route_handlers=[], include_in_schema=False, opt=PUBLIC),
        components=Components(
            security_schemes={
                "bearer": SecurityScheme(type="http", scheme="bearer"),
                "key": SecurityScheme(type="apiKey", name="x-api-key", security_scheme_in="header"),
            }
        ),
        security=[{"bearer": []}, {"key": []}, {}],
    )


ROUTES = [describe, describe_messages]
