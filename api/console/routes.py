"""All routes of the console, and the address `/`, which leads people there and programs nowhere, as ever."""

from typing import Any

from litestar import HttpMethod, Router, get, route
from litestar.di import Provide
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from api.console import (
    actions,
    agent,
    agents,
    assets,
    audit,
    calls,
    cards,
    keys,
    live,
    messages,
    sign_in,
    system,
    version,
)
from api.console.failures import ERROR_PAGES
from api.console.page import HOME, go, provide_any_page, provide_page
from api.http.access import PUBLIC
from api.http.options import options_handlers
from api.http.parameters import AnyRequest

METHODS = [HttpMethod.GET, HttpMethod.HEAD, HttpMethod.POST, HttpMethod.PUT, HttpMethod.PATCH, HttpMethod.DELETE]


@route("/", http_method=METHODS, status_code=200, opt=PUBLIC, include_in_schema=False)
async def show_root(request: AnyRequest) -> Any:  # noqa: ANN401 - the way to the first page, or an error
    """The way to the console for a browser. Programs get 404, as for every path without a route."""
    if request.method in {"GET", "HEAD"} and "text/html" in request.headers.get("accept", ""):
        return go(HOME)
    raise NotFoundException


@get("/console/{rest:path}", include_in_schema=False)
async def show_nothing(rest: FromPath[str]) -> None:  # noqa: ARG001 - any path
    """An unknown page."""
    raise NotFoundException


def console_routes() -> list[Any]:
    """The routes. A page checks its visitor itself; a key in a header is for programs and opens no page."""
    pages = [
        *agents.ROUTES,
        *agent.ROUTES,
        *version.ROUTES,
        *cards.ROUTES,
        *calls.ROUTES,
        *actions.ROUTES,
        *messages.ROUTES,
        *system.ROUTES,
        *keys.ROUTES,
        *audit.ROUTES,
        *live.ROUTES,
        *sign_in.ROUTES,
        show_nothing,
    ]
    outside = [show_root, *assets.ROUTES]
    return [
        *options_handlers(outside, PUBLIC),
        *outside,
        Router(
            "/",
            route_handlers=[*options_handlers(pages, PUBLIC), *pages],
            dependencies={"page": Provide(provide_page), "any_page": Provide(provide_any_page)},
            exception_handlers=ERROR_PAGES,
            opt={**PUBLIC},
        ),
    ]
