"""Agent cards (A2A 0.3 and 1.0) beside each RPC route: fetched from the agent, with the gateway's addresses in them.

https://a2a-protocol.org/latest/specification/#441-agentcard
"""

import asyncio
from collections.abc import Iterable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from litestar import Response, get
from litestar.openapi import ResponseSpec
from litestar.params import FromPath
from pydantic_core import from_json, to_json

from api.auth.guard import admission_of
from api.gateway.agent_documents import DocumentInvalid, DocumentMissing, fetch_document, public_url
from api.gateway.headers import route_headers
from api.http.access import needs
from api.http.jsonrpc import ForwardingFailure
from api.http.parameters import AnyRequest, agent_name, agent_uuid, deployment_key
from api.http.problems import documented
from api.resources import Injected, Resources
from services.errors import PodiumError
from services.routing.routes import RouteKey

# https://a2a-protocol.org/latest/specification/#82-well-known-uri
CARD_PATH = "/.well-known/agent-card.json"
CARD_MAX_BYTES = 1024 * 1024
JSON_RPC = "JSONRPC"

# What an agent says about credentials, which the gateway removes from calls: A2A 0.2, 0.3 and 1.0.
_SECURITY = ("authentication", "securitySchemes", "security", "securityRequirements")
# The extended card is the answer of a call, which the gateway passes unread, with the agent's own addresses in it.
_EXTENDED_CARD = ("supportsAuthenticatedExtendedCard", "supportsExtendedAgentCard")
_EXTENDED_CARD_CAPABILITY = "extendedAgentCard"
# The API key, as a bearer token, in both forms.
_SCHEME = "podium"
_SCHEME_0_3 = {"type": "http", "scheme": "bearer"}
_SCHEME_1_0 = {"httpAuthSecurityScheme": {"scheme": "Bearer"}}

_DOCUMENTED = {
    **documented(404, 410, 502, 504),
    200: ResponseSpec(dict[str, object], description="The agent card", generate_examples=False),
}

# Those who call an agent need its card, too.
_RULE = needs("read", "invoke", agents="route")

Json = dict[str, Any]
T = TypeVar("T")


class AgentCardMissing(PodiumError):
    """The agent has no card at /.well-known/agent-card.json: it does not speak A2A."""

    status = 404
    reason = "agent-card-missing"


class AgentCardTimeout(ForwardingFailure):
    """The agent did not send its card in time."""

    status = 504
    reason = "agent-card-timeout"


class AgentCardInvalid(ForwardingFailure):
    """The agent's card is not valid, or callers of the gateway could not use it."""

    reason = "agent-card-invalid"


@get(f"/agents/{{agent_id:str}}{CARD_PATH}", opt=_RULE, operation_id="get_agent_card", responses=_DOCUMENTED)
async def card(agent_id: FromPath[str], resources: Injected, request: AnyRequest) -> Response[bytes]:
    """The agent card of what serves the agent now. Its address is the agent's `rpc` route."""
    wanted = agent_uuid(agent_id)
    return await _answer(request, resources, RouteKey(agent_id=wanted), f"/agents/{wanted}")


@get(f"/agents/name/{{name:str}}{CARD_PATH}", opt=_RULE, operation_id="get_agent_card_by_name", responses=_DOCUMENTED)
async def card_by_name(name: FromPath[str], resources: Injected, request: AnyRequest) -> Response[bytes]:
    """The agent card of what serves the living agent of this name now. Its address is the agent's `rpc` route."""
    wanted = agent_name(name)
    return await _answer(request, resources, RouteKey(name=wanted), f"/agents/name/{wanted}")


@get(
    f"/agents/{{agent_id:str}}/deployments/{{deployment_id:str}}{CARD_PATH}",
    opt=_RULE,
    operation_id="get_deployment_card",
    responses=_DOCUMENTED,
)
async def preview_card(
    agent_id: FromPath[str], deployment_id: FromPath[str], resources: Injected, request: AnyRequest
) -> Response[bytes]:
    """The agent card of this deployment, in production or not. Its address is the deployment's `rpc` route."""
    wanted, key = agent_uuid(agent_id), deployment_key(deployment_id)
    return await _answer(
        request,
        resources,
        RouteKey(agent_id=wanted, deployment_id=key),
        f"/agents/{wanted}/deployments/{key}",
    )


ROUTES = [card, card_by_name, preview_card]


def rewritten(card: bytes, *, registered_url: str, rpc_url: str, needs_key: bool) -> bytes:
    """The card, with the gateway's `rpc_url` as the address of all its interfaces. Raises `AgentCardInvalid`.

    Only JSON-RPC interfaces stay. If some of them are at the path of `registered_url`, only those stay. Signatures are
    dropped, since they cover the original card. Instead of the agent's credentials the card names the gateway's key, if
    callers need one (`needs_key`).
    """
    try:
        found = from_json(card, allow_inf_nan=False)
        if not isinstance(found, dict):
            raise AgentCardInvalid("The agent's card is not a JSON object.")
        changed = _rewritten(found, urlsplit(registered_url).path, rpc_url)
        return to_json({**_without_claims(changed), **(_key_needed(changed) if needs_key else {})})
    except (ValueError, TypeError, LookupError, AttributeError) as exc:
        raise AgentCardInvalid("The agent's card cannot be read: it is not JSON, or not shaped as a card.") from exc


async def _answer(request: AnyRequest, resources: Resources, key: RouteKey, base_path: str) -> Response[bytes]:
    gateway = resources.gateway
    rpc_url = f"{public_url(request, gateway)}{base_path}/rpc"
    route = await gateway.routes.find(key, admission_of(request, resources, request.route_handler).check)
    try:
        async with asyncio.timeout(gateway.settings.card_timeout.total_seconds()):
            found, route = await fetch_document(request, gateway, route, CARD_PATH, CARD_MAX_BYTES)
    except TimeoutError as exc:
        raise AgentCardTimeout from exc
    except DocumentMissing as exc:
        raise AgentCardMissing from exc
    except DocumentInvalid as exc:
        raise AgentCardInvalid(exc.message) from exc
    # A promote can change the card at any time.
    headers = {"cache-control": "no-cache", **route_headers(route)}
    needs_key = gateway.settings.keys_required
    content = rewritten(found, registered_url=route.rpc_url, rpc_url=rpc_url, needs_key=needs_key)
    return Response(content, headers=headers, media_type="application/json")


def _rewritten(card: Json, path: str, rpc_url: str) -> Json:
    """The rewritten card; a card may carry the fields of both 0.3 and 1.0."""
    main = {"url": card.get("url"), "transport": card.get("preferredTransport", JSON_RPC)}
    of_0_3 = [main, *(card.get("additionalInterfaces") or [])] if "url" in card else []
    kept_0_3 = _through_gateway(of_0_3, "transport", path, rpc_url)
    kept_1_0 = _through_gateway(card.get("supportedInterfaces") or [], "protocolBinding", path, rpc_url)
    if not kept_0_3 and not kept_1_0:
        raise AgentCardInvalid("The agent's card has no JSON-RPC interface; the gateway forwards only JSON-RPC.")
    changed: Json = {"signatures": None, "url": None, "preferredTransport": None, "additionalInterfaces": None}
    if kept_0_3:
        changed |= {"url": rpc_url, "preferredTransport": JSON_RPC}
        if "additionalInterfaces" in card:
            changed["additionalInterfaces"] = kept_0_3
    if "supportedInterfaces" in card:
        changed["supportedInterfaces"] = kept_1_0 or None
    merged = {**card, **changed}
    return {name: value for name, value in merged.items() if name not in changed or value is not None}


def _without_claims(card: Json) -> Json:
    """The card without the agent's claims about credentials and an extended card."""
    changed = _without(card, *_SECURITY, *_EXTENDED_CARD)
    if card.get("skills") is not None:
        changed["skills"] = [_without(skill, *_SECURITY) for skill in _checked(card["skills"], list)]
    if card.get("capabilities") is not None:
        changed["capabilities"] = _without(card["capabilities"], _EXTENDED_CARD_CAPABILITY)
    return changed


def _key_needed(card: Json) -> Json:
    """The fields that ask for the gateway's key, for each version that the card is of."""
    scheme: Json = {}
    fields: Json = {"securitySchemes": {_SCHEME: scheme}}
    if "url" in card:
        scheme |= _SCHEME_0_3
        fields["security"] = [{_SCHEME: []}]
    if "supportedInterfaces" in card:
        scheme |= _SCHEME_1_0
        fields["securityRequirements"] = [{"schemes": {_SCHEME: {"list": []}}}]
    return fields


def _without(value: Json, *names: str) -> Json:
    return {name: each for name, each in _checked(value, dict).items() if name not in names}


def _checked(value: Any, shape: type[T]) -> T:  # noqa: ANN401 - a value from JSON
    """The value. Raises `TypeError` if it has another type."""
    if not isinstance(value, shape):
        raise TypeError
    return value


def _through_gateway(interfaces: Iterable[Json], binding: str, path: str, rpc_url: str) -> list[Json]:
    """The interfaces that the gateway forwards, at the gateway's address, without duplicates."""
    json_rpc = [each for each in interfaces if each.get(binding) == JSON_RPC]
    at_path = [each for each in json_rpc if urlsplit(each["url"]).path.rstrip("/") == path.rstrip("/")]
    kept: list[Json] = []
    for each in at_path or json_rpc:
        moved = {**each, "url": rpc_url}
        if moved not in kept:
            kept.append(moved)
    return kept
