"""The description of this API: JSON alone, since pages that render it load scripts from elsewhere."""

from importlib.metadata import version
from typing import Any

from litestar import Router, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from api.http.access import PUBLIC
from api.http.parameters import AnyRequest


@get("/openapi.json", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def describe(request: AnyRequest) -> dict[str, Any]:
    """The OpenAPI description, where pods of the existing SDK look for it before they register."""
    return request.app.openapi_schema.to_schema()


def openapi_config() -> OpenAPIConfig:
    """How the routes are described, at /schema."""
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


ROUTES = [describe]
