"""OAuth metadata of agents that authenticate their callers themselves (RFC 9728), with the gateway's addresses in it.

A client finds that of `https://host/path` at `https://host/.well-known/oauth-protected-resource/path`, before it
has a token. So these routes need no key, and tell of nothing but agents whose policy is to get callers' credentials.
https://modelcontextprotocol.io/specification/2025-11-25/basic/authorization
"""

import asyncio
from typing import Any

from litestar import Response, get
from litestar.openapi import ResponseSpec
from litestar.params import FromPath
from pydantic_core import from_json, to_json

from api.gateway.agent_documents import DocumentInvalid, DocumentMissing, fetch_document, public_url
from api.gateway.challenges import WELL_KNOWN
from api.http.access import PUBLIC
from api.http.jsonrpc import ForwardingFailure
from api.http.parameters import AnyRequest, agent_name, agent_uuid, deployment_key
from api.http.problems import documented
from api.resources import Injected, Resources
from services.errors import DeploymentUnavailable, NothingServes, PodiumError, Unavailable
from services.routing.routes import Route, RouteKey

METADATA_MAX_BYTES = 64 * 1024

_DOCUMENTED = {
    **documented(404, 410, 502, 504),
    200: ResponseSpec(dict[str, object], description="The metadata", generate_examples=False),
}


class MetadataMissing(PodiumError):
    """There is no such agent that authenticates its callers itself, or it publishes no metadata."""

    status = 404
    reason = "resource-metadata-missing"


class MetadataInvalid(ForwardingFailure):
    """The agent's metadata is not valid."""

    reason = "resource-metadata-invalid"


class MetadataTimeout(ForwardingFailure):
    """The agent did not send its metadata in time."""

    status = 504
    reason = "resource-metadata-timeout"


@get(
    f"{WELL_KNOWN}/agents/{{agent_id:str}}/rpc",
    opt=PUBLIC,
    operation_id="get_resource_metadata",
    responses=_DOCUMENTED,
)
async def metadata(agent_id: FromPath[str], request: AnyRequest, resources: Injected) -> Response[bytes]:
    """How to get a token for what serves the agent now, if the agent authenticates its callers itself."""
    wanted = agent_uuid(agent_id)
    return await _answer(request, resources, RouteKey(agent_id=wanted), f"/agents/{wanted}/rpc")


@get(
    f"{WELL_KNOWN}/agents/name/{{name:str}}/rpc",
    opt=PUBLIC,
    operation_id="get_resource_metadata_by_name",
    responses=_DOCUMENTED,
)
async def metadata_by_name(name: FromPath[str], request: AnyRequest, resources: Injected) -> Response[bytes]:
    """How to get a token for what serves the agent of this name now, if it authenticates its callers itself."""
    wanted = agent_name(name)
    return await _answer(request, resources, RouteKey(name=wanted), f"/agents/name/{wanted}/rpc")


@get(
    f"{WELL_KNOWN}/agents/{{agent_id:str}}/deployments/{{deployment_id:str}}/rpc",
    opt=PUBLIC,
    operation_id="get_resource_metadata_of_deployment",
    responses=_DOCUMENTED,
)
async def metadata_of_deployment(
    agent_id: FromPath[str], deployment_id: FromPath[str], request: AnyRequest, resources: Injected
) -> Response[bytes]:
    """How to get a token for this deployment, if its agent authenticates its callers itself."""
    wanted, key = agent_uuid(agent_id), deployment_key(deployment_id)
    path = f"/agents/{wanted}/deployments/{key}/rpc"
    return await _answer(request, resources, RouteKey(agent_id=wanted, deployment_id=key), path)


ROUTES = [metadata, metadata_by_name, metadata_of_deployment]


async def _answer(request: AnyRequest, resources: Resources, key: RouteKey, rpc_path: str) -> Response[bytes]:
    gateway = resources.gateway
    resource = f"{public_url(request, gateway)}{rpc_path}"
    try:
        route = await gateway.routes.find(key)
    except Unavailable as exc:
        # These tell of an agent; the others of the database.
        if isinstance(exc, NothingServes | DeploymentUnavailable):
            raise MetadataMissing from exc
        raise
    except PodiumError as exc:
        raise MetadataMissing from exc
    if route.forward_authorization != "pass":
        raise MetadataMissing
    try:
        async with asyncio.timeout(gateway.settings.card_timeout.total_seconds()):
            found = await _fetched(request, resources, route)
    except TimeoutError as exc:
        raise MetadataTimeout from exc
    content = to_json({**_without_signature(found), "resource": resource})
    return Response(content, headers={"cache-control": "no-cache"}, media_type="application/json")


async def _fetched(request: AnyRequest, resources: Resources, route: Route) -> dict[str, Any]:
    """The metadata of the endpoint, else of the whole origin."""
    for path in (f"{WELL_KNOWN}{route.rpc_path}", WELL_KNOWN):
        try:
            content, _ = await fetch_document(request, resources.gateway, route, path, METADATA_MAX_BYTES)
            found = from_json(content)
        except DocumentMissing:
            continue
        except (DocumentInvalid, ValueError) as exc:
            raise MetadataInvalid from exc
        if not isinstance(found, dict):
            raise MetadataInvalid
        return found
    raise MetadataMissing


def _without_signature(found: dict[str, Any]) -> dict[str, Any]:
    """Without the signed copy, which names the agent's own address."""
    return {name: value for name, value in found.items() if name != "signed_metadata"}
