"""Which headers cross the gateway, in both directions (RFC 9110, section 7.6)."""

from collections.abc import Iterable, Sequence
from uuid import uuid4

from multidict import CIMultiDict

from api.gateway.tracing import TRACEPARENT, TRACESTATE, Span, child_of
from api.http.preconditions import GENERATION_HEADER
from services.routing.routes import Route

DEPLOYMENT_HEADER = "x-podium-deployment-id"
REQUEST_ID_HEADER = "x-request-id"

RawHeaders = Iterable[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_CREDENTIALS = frozenset({b"authorization", b"cookie", b"x-api-key", b"x-agent-api-key"})
# What came before the gateway is none of the agent's business, and must not be taken for the gateway's own word.
_ORIGIN = frozenset({b"forwarded", b"x-real-ip", b"via", b"origin", b"host"})
_ORIGIN_PREFIX = b"x-forwarded-"
# The body is read to its end before it is sent on: its length is known, and nobody waits for a go-ahead any more.
_FRAMING = frozenset({b"content-length", b"expect"})
_TRACEPARENT = TRACEPARENT.encode()
_NOT_REQUESTED = _HOP_BY_HOP | _CREDENTIALS | _ORIGIN | _FRAMING

# An agent must not set cookies for the gateway's host, nor speak in the gateway's name.
_NOT_ANSWERED = _HOP_BY_HOP | {b"set-cookie"}
_OWN_PREFIX = b"x-podium-"


def request_headers(given: RawHeaders) -> tuple[CIMultiDict[str], Span]:
    """What the agent gets to see of the caller's headers, with a request id and the gateway's own span of the trace."""
    headers = [(name.lower(), value) for name, value in given]
    span = child_of([value for name, value in headers if name == _TRACEPARENT])
    stripped = _NOT_REQUESTED | _named_by_connection(headers)
    forwarded: CIMultiDict[str] = CIMultiDict(
        (name.decode("latin-1"), _text(value))
        for name, value in headers
        if name not in stripped and not name.startswith(_ORIGIN_PREFIX)
    )
    forwarded.setdefault(REQUEST_ID_HEADER, uuid4().hex)
    forwarded[TRACEPARENT] = span.traceparent
    if not span.continued:
        # It belongs to a trace that cannot be told any more.
        forwarded.popall(TRACESTATE, None)
    return forwarded, span


def response_headers(given: RawHeaders, route: Route) -> Sequence[tuple[bytes, bytes]]:
    """What the caller gets to see of the agent's headers, in their order, and which deployment answered."""
    headers = [(name.lower(), value) for name, value in given]
    stripped = _NOT_ANSWERED | _named_by_connection(headers)
    answered = [(name, value) for name, value in headers if name not in stripped and not name.startswith(_OWN_PREFIX)]
    answered += [(name.encode(), value.encode()) for name, value in route_headers(route).items()]
    return answered


def route_headers(route: Route) -> dict[str, str]:
    """Who answered: the generation, and the deployment if it was one."""
    headers = {GENERATION_HEADER: str(route.generation)}
    if route.deployment_id is not None:
        headers[DEPLOYMENT_HEADER] = route.deployment_id
    return headers


def _named_by_connection(headers: RawHeaders) -> frozenset[bytes]:
    return frozenset(
        token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")
    )


def _text(value: bytes) -> str:
    """A header value such that it is sent on as the same bytes; those that are no UTF-8 are sent as UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
