"""The fast path of an RPC: the guards of its route and its forwarding, without the rest of Litestar's routing.

Parsing parameters, dependency injection and building a response cost a third of a call. Every request that is not
plainly an RPC takes full routing, where the same routes serve it.
"""

import re
from typing import Any

from litestar import Litestar, Request
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from api.auth.guard import admission_of
from api.gateway.forward import Forward, UpstreamResponseBroken
from api.gateway.routes import METHODS, ROUTES, route_key
from api.http.problems import render_defect, render_domain_error
from api.resources import provide_resources
from services.errors import PodiumError

_METHODS = frozenset(method.value for method in METHODS)
_PATH = re.compile(
    r"/agents/(?:name/(?P<name>[^/]+)|(?!name/)(?P<agent_id>[^/]+)(?:/deployments/(?P<deployment_id>[^/]+))?)/rpc"
)


class FastPath:
    """An ASGI application that serves RPCs itself and passes every other request to the Litestar application."""

    def __init__(self, app: Litestar) -> None:
        self._app: ASGIApp = app.asgi_handler
        self._state = app.state
        self._routes = {frozenset(route.path_parameters): (route, handler) for route, handler in _rpc_routes(app)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward an RPC; leave every other request to full routing."""
        found = None
        if scope["type"] == ScopeType.HTTP and scope["method"] in _METHODS:
            found = _PATH.fullmatch(scope["path"])
        if found is None:
            await self._app(scope, receive, send)
            return
        assert scope["type"] == ScopeType.HTTP
        await self._forward(scope, receive, send, {name: text for name, text in found.groupdict().items() if text})

    async def _forward(self, scope: HTTPScope, receive: Receive, send: Send, parameters: dict[str, str]) -> None:
        route, handler = self._routes[frozenset(parameters)]
        scope["path_params"], scope["path_template"] = parameters, route.path_format
        scope["route_handler"] = handler
        request: Request[Any, Any, Any] = Request(scope, receive, send)
        response_started = False

        async def tracking_send(message: Message) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            for guard in handler.resolve_guards():
                await guard(request, handler)  # type: ignore[misc]
            resources = provide_resources(self._state)
            forward = Forward(resources.gateway, route_key(**parameters), admission_of(request, resources, handler))
            await forward(scope, receive, tracking_send)
        except UpstreamResponseBroken:
            raise
        except PodiumError as exc:
            response = render_domain_error(request, exc)
        except Exception as exc:
            if response_started:
                raise
            response = render_defect(request, exc)
        else:
            return
        await response.to_asgi_response(app=None, request=request)(scope, receive, send)


def _rpc_routes(app: Litestar) -> list[tuple[HTTPRoute, HTTPRouteHandler]]:
    functions = {handler.fn for handler in ROUTES}
    return [
        (route, handler)
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if handler.fn in functions
    ]
