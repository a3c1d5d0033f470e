"""Documents that an agent publishes beside its RPC endpoint, such as its card: fetched as a call is forwarded."""

import re

import aiohttp
from multidict import CIMultiDict

from api.gateway.gateway import Gateway
from api.gateway.headers import request_headers
from api.gateway.upstream import AgentAnswer, Call
from api.http.jsonrpc import ForwardingFailure
from api.http.parameters import REQUEST_ID_HEADER, AnyRequest
from contracts.fields import check_service_address
from services.errors import InvalidRequest
from services.routing.routes import Route

# The caller's headers that reach the agent: those of the protocol, and those that identify a call in logs and traces.
_FORWARDED = re.compile(rf"a2a-.*|mcp-.*|traceparent|tracestate|baggage|{REQUEST_ID_HEADER}", re.IGNORECASE)


class DocumentMissing(Exception):
    """The agent has no such document."""


class DocumentInvalid(ForwardingFailure):
    """The agent's document is not valid, or callers of the gateway could not use it."""


async def fetch_document(
    request: AnyRequest, gateway: Gateway, route: Route, path: str, max_bytes: int
) -> tuple[bytes, Route]:
    """The document at this path of the agent's origin, and the route to the instance that served it.

    Raises `DocumentMissing`, `DocumentInvalid`, and the errors of any call.
    """
    headers: CIMultiDict[str] = CIMultiDict({"accept": "application/json"})
    forwarded, _ = request_headers(request.scope["headers"])
    headers.extend((name, value) for name, value in forwarded.items() if _FORWARDED.fullmatch(name))

    def call_to(instance: Route) -> Call:
        return Call("GET", f"{instance.origin}{path}", b"", headers, b"")

    with gateway.balancer.enter(route) as call:
        response = await call.answer(call_to)
        try:
            return await _content(response, max_bytes), call.route
        finally:
            response.close()


def public_url(request: AnyRequest, gateway: Gateway) -> str:
    """The base URL of this API: the configured one, else the one of this request. Raises `InvalidRequest`."""
    if gateway.settings.public_url:
        return gateway.settings.public_url.rstrip("/")
    hosts = request.headers.getall("host", [])
    try:
        [host] = hosts
        return check_service_address(f"{request.scope['scheme']}://{host}")
    except ValueError as exc:
        message = "The answer contains the address of this request: send one Host header with only a host and a port."
        raise InvalidRequest(message, field="Host") from exc


async def _content(response: AgentAnswer, max_bytes: int) -> bytes:
    if response.status in {404, 405}:
        raise DocumentMissing
    if response.status != 200:  # noqa: PLR2004 - the HTTP status OK
        raise DocumentInvalid(f"The agent answers HTTP {response.status} there.")
    content = bytearray()
    try:
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > max_bytes:
                raise DocumentInvalid(f"The agent's document is larger than {max_bytes} bytes.")
    except aiohttp.ClientError as exc:
        raise DocumentInvalid("The agent closed the connection before the end of its document.") from exc
    return bytes(content)
