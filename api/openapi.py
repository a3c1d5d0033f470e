"""The description of this API where pods of the existing SDK look for it, before they register."""

from typing import Any

from litestar import get

from api.auth import PUBLIC
from api.parameters import AnyRequest


@get("/openapi.json", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def describe(request: AnyRequest) -> dict[str, Any]:
    """The OpenAPI description."""
    return request.app.openapi_schema.to_schema()


ROUTES = [describe]
