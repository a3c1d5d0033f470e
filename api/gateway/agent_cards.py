"""Agent cards (A2A), beside each RPC route: fetched from the agent, with the gateway's addresses in it."""

import asyncio
import re
from urllib.parse import urlsplit

import aiohttp
from litestar import Response, get
from litestar.openapi import ResponseSpec
from litestar.params import FromPath
from multidict import CIMultiDict

from api.gateway.card_rewriting import AgentCardInvalid, rewritten
from api.gateway.headers import REQUEST_ID_HEADER, request_headers, route_headers
from api.gateway.upstream import Call, call_agent
from api.http.jsonrpc import ForwardingFailure
from api.http.parameters import AnyRequest, agent_name, agent_uuid, deployment_key
from api.http.problems import documented
from api.resources import Injected, Resources
from contracts.fields import check_service_address
from services.errors import InvalidRequest, PodiumError
from services.routing.routes import Route, RouteKey

# https://a2a-protocol.org/latest/specification/#82-well-known-uri
CARD_PATH = "/.well-known/agent-card.json"
CARD_MAX_BYTES = 1024 * 1024

# Of the caller's headers: the protocol's own, and those by which one finds a call again.
_PASSED = re.compile(rf"a2a-.*|traceparent|tracestate|baggage|{REQUEST_ID_HEADER}", re.IGNORECASE)
_DOCUMENTED = {
    **documented(404, 410, 502, 504),
    200: ResponseSpec(dict[str, object], description="The agent card", generate_examples=False),
}


class AgentCardMissing(PodiumError):
    """The agent has no card at /.well-known/agent-card.json: it does not speak A2A."""

    status = 404
    reason = "agent-card-missing"


class AgentCardTimeout(ForwardingFailure):
    """The agent did not send its card in time."""

    status = 504
    reason = "agent-card-timeout"


@get(f"/agents/{{agent_id:str}}{CARD_PATH}", responses=_DOCUMENTED)
async def card(agent_id: FromPath[str], resources: Injected, request: AnyRequest) -> Response[bytes]:
    """The card of what serves the agent now; it names `rpc` beside it as the agent's address."""
    wanted = agent_uuid(agent_id)
    return await _answer(request, resources, RouteKey(agent_id=wanted), f"/agents/{wanted}")


@get(f"/agents/name/{{name:str}}{CARD_PATH}", responses=_DOCUMENTED)
async def card_by_name(name: FromPath[str], resources: Injected, request: AnyRequest) -> Response[bytes]:
    """The card of what serves the living agent of this name now; it names `rpc` beside it as the agent's address."""
    wanted = agent_name(name)
    return await _answer(request, resources, RouteKey(name=wanted), f"/agents/name/{wanted}")


@get(f"/agents/{{agent_id:str}}/deployments/{{deployment_id:str}}{CARD_PATH}", responses=_DOCUMENTED)
async def preview_card(
    agent_id: FromPath[str], deployment_id: FromPath[str], resources: Injected, request: AnyRequest
) -> Response[bytes]:
    """The card of this deployment, in production or not; it names `rpc` beside it as the agent's address."""
    wanted, key = agent_uuid(agent_id), deployment_key(deployment_id)
    return await _answer(
        request,
        resources,
        RouteKey(agent_id=wanted, deployment_id=key),
        f"/agents/{wanted}/deployments/{key}",
    )


ROUTES = [card, card_by_name, preview_card]


async def _answer(request: AnyRequest, resources: Resources, wanted: RouteKey, beside: str) -> Response[bytes]:
    rpc_url = f"{_public_url(request, resources)}{beside}/rpc"
    route = await resources.gateway.routes.find(wanted)
    try:
        async with asyncio.timeout(resources.settings.card_timeout.total_seconds()):
            found = await _fetched(request, resources, route)
    except TimeoutError as exc:
        raise AgentCardTimeout from exc
    # A promote may change it at any time.
    headers = {"cache-control": "no-cache", **route_headers(route)}
    content = rewritten(found, registered_url=route.rpc_url, rpc_url=rpc_url)
    return Response(content, headers=headers, media_type="application/json")


def _public_url(request: AnyRequest, resources: Resources) -> str:
    """Where callers reach this API: as it was set, else as this caller has. Raises `InvalidRequest`."""
    if resources.settings.public_url:
        return resources.settings.public_url.rstrip("/")
    hosts = request.headers.getall("host", [])
    try:
        [host] = hosts
        return check_service_address(f"{request.scope['scheme']}://{host}")
    except ValueError as exc:
        message = "A card names the address that was called: send one Host header with host and port alone."
        raise InvalidRequest(message, field="Host") from exc


async def _fetched(request: AnyRequest, resources: Resources, route: Route) -> bytes:
    """The card as the agent serves it. Raises `AgentCardMissing`, `AgentCardInvalid`, and as any call does."""
    headers: CIMultiDict[str] = CIMultiDict({"accept": "application/json"})
    forwarded, _ = request_headers(request.scope["headers"])
    headers.extend((key, value) for key, value in forwarded.items() if _passed(key))
    parts = urlsplit(route.acp_url)
    url = f"{parts.scheme}://{parts.netloc}{CARD_PATH}"
    call = Call(method="GET", url=url, query=b"", headers=headers, body=b"")
    with resources.gateway.breakers.enter(route) as permit:
        response = await permit.watch(call_agent(resources.gateway.upstream, call, resources.settings))
        try:
            return await _content(response)
        finally:
            response.close()


async def _content(response: aiohttp.ClientResponse) -> bytes:
    if response.status in {404, 405}:
        raise AgentCardMissing
    if response.status != 200:  # noqa: PLR2004 - HTTP: here it is
        raise AgentCardInvalid(f"The agent answers HTTP {response.status} where its card should be.")
    content = bytearray()
    try:
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > CARD_MAX_BYTES:
                raise AgentCardInvalid(f"The agent's card is larger than {CARD_MAX_BYTES} bytes.")
    except aiohttp.ClientError as exc:
        raise AgentCardInvalid("The agent broke its card off.") from exc
    return bytes(content)


def _passed(name: str) -> bool:
    return _PASSED.fullmatch(name) is not None
