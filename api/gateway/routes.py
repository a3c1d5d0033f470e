"""The RPC routes: to what serves an agent, by its id or name, and to one deployment of it."""

from litestar import HttpMethod, route
from litestar.params import FromPath
from litestar.types import ASGIApp

from api.auth.guard import admission_of
from api.gateway.forward import Forward
from api.http.access import needs
from api.http.jsonrpc import documented
from api.http.parameters import AnyRequest, agent_name, agent_uuid, deployment_key
from api.resources import Injected
from services.routing.routes import RouteKey

CALL = needs("invoke", agents="route")
METHODS = [HttpMethod.GET, HttpMethod.POST, HttpMethod.DELETE]


def route_key(*, agent_id: str | None = None, name: str | None = None, deployment_id: str | None = None) -> RouteKey:
    """The route key for the parameters of an RPC path. Raises `AgentNotFound`, `DeploymentNotFound`."""
    if name is not None:
        return RouteKey(name=agent_name(name))
    assert agent_id is not None
    key = None if deployment_id is None else deployment_key(deployment_id)
    return RouteKey(agent_id=agent_uuid(agent_id), deployment_id=key)


@route(
    "/agents/{agent_id:str}/rpc", opt=CALL, http_method=METHODS, status_code=200, tags=["RPC"], responses=documented()
)
async def rpc(agent_id: FromPath[str], request: AnyRequest, resources: Injected) -> ASGIApp:
    """Forward a call to what serves the agent now. The body and the answer pass unchanged; the answer is streamed."""
    return Forward(
        resources.gateway, route_key(agent_id=agent_id), admission_of(request, resources, request.route_handler)
    )


@route(
    "/agents/name/{name:str}/rpc", opt=CALL, http_method=METHODS, status_code=200, tags=["RPC"], responses=documented()
)
async def rpc_by_name(name: FromPath[str], request: AnyRequest, resources: Injected) -> ASGIApp:
    """Forward a call to what serves the living agent of this name now."""
    return Forward(resources.gateway, route_key(name=name), admission_of(request, resources, request.route_handler))


@route(
    "/agents/{agent_id:str}/deployments/{deployment_id:str}/rpc",
    opt=CALL,
    http_method=METHODS,
    status_code=200,
    tags=["RPC"],
    responses=documented(),
)
async def preview_rpc(
    agent_id: FromPath[str], deployment_id: FromPath[str], request: AnyRequest, resources: Injected
) -> ASGIApp:
    """Forward a call to this deployment, in production or not."""
    return Forward(
        resources.gateway,
        route_key(agent_id=agent_id, deployment_id=deployment_id),
        admission_of(request, resources, request.route_handler),
    )


ROUTES = [rpc, rpc_by_name, preview_rpc]
