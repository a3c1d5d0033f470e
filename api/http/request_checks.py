"""Checks of what a request contains beyond what its route reads: query parameters and conditions."""

from functools import lru_cache
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.params import QueryParameter

from api.http.requests import ConditionalChange
from services.errors import InvalidRequest


async def check_request(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """The guard of every route that does not forward its request.

    Raises `InvalidRequest` for a query parameter that the route does not have, and for If-Match on a route that does
    not honour it.
    """
    # The handler itself: Litestar gives each guard a copy, which no cache knows.
    known = query_parameters(connection.scope["route_handler"])
    unknown = next((name for name in connection.query_params if name not in known), None)
    if unknown is not None:
        listed = f"only {', '.join(sorted(known))}" if known else "no query parameters"
        raise InvalidRequest(f"{unknown} is not a query parameter of this route, which has {listed}.", field=unknown)
    if "if-match" in connection.headers and not _is_conditional(handler):
        raise InvalidRequest("This route does not support If-Match: send the request without it.", field="If-Match")


@lru_cache(maxsize=256)
def query_parameters(handler: BaseRouteHandler) -> frozenset[str]:
    """The names of the query parameters that the route reads."""
    return frozenset(
        field.kwarg_definition.name or name
        for name, field in handler.parsed_fn_signature.parameters.items()
        if isinstance(field.kwarg_definition, QueryParameter)
    )


def _is_conditional(handler: BaseRouteHandler) -> bool:
    return isinstance(handler, HTTPRouteHandler) and issubclass(handler.operation_class, ConditionalChange)
