"""Answers to OPTIONS that name all methods of a path; the framework's name only those of one handler."""

from collections.abc import Iterable

from litestar import HttpMethod, Response, route
from litestar.handlers import HTTPRouteHandler

from api.http.access import Access, needs
from services.domain.identity import SCOPES

# Whoever has a key, whatever it is for: the answer says nothing about agents.
_ANYBODY = needs(*SCOPES, agents="answer")


def options_handlers(handlers: Iterable[HTTPRouteHandler], access: Access = _ANYBODY) -> list[HTTPRouteHandler]:
    """A handler of OPTIONS for each path of these handlers. Register it before them."""
    methods: dict[str, set[str]] = {}
    for handler in handlers:
        for path in handler.paths:
            methods.setdefault(path, {HttpMethod.OPTIONS.value}).update(handler.http_methods)
    return [_options_handler(path, ", ".join(sorted(allowed)), access) for path, allowed in methods.items()]


def _options_handler(path: str, allowed: str, access: Access) -> HTTPRouteHandler:
    @route(
        path,
        opt=access,
        http_method=HttpMethod.OPTIONS,
        status_code=204,
        include_in_schema=False,
        sync_to_thread=False,
    )
    def answer_options() -> Response[None]:
        """The methods of this path."""
        return Response(None, headers={"allow": allowed})

    return answer_options
