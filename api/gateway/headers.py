"""Which headers cross the gateway in each direction (RFC 9110, section 7.6), and the trace context among them.

The gateway continues the caller's trace, or starts one (https://www.w3.org/TR/trace-context/).
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from multidict import CIMultiDict

from api.gateway.challenges import CHALLENGE, returned_challenges
from api.gateway.redirects import LOCATION
from api.gateway.upstream import AgentProtocolError
from api.http.parameters import REQUEST_ID_HEADER
from api.http.preconditions import GENERATION_HEADER
from services.routing.routes import Route

DEPLOYMENT_HEADER = "x-podium-deployment-id"
INSTANCE_HEADER = "x-podium-instance-id"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

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
# The path of a request before the gateway does not concern the agent, and the agent must not mistake it for ours.
_ORIGIN = frozenset({b"forwarded", b"x-real-ip", b"via", b"origin", b"host"})
_ORIGIN_PREFIX = b"x-forwarded-"
# The gateway reads the whole body before it forwards it: the client library sets the length, and 100-continue is over.
_FRAMING = frozenset({b"content-length", b"expect"})
_AUTHORIZATION = b"authorization"
_TRACEPARENT = TRACEPARENT.encode()
_NOT_FORWARDED = _HOP_BY_HOP | _CREDENTIALS | _ORIGIN | _FRAMING

# A browser applies these to the whole origin of the API or to its view of the answer: no decision of an agent.
_OF_THE_ORIGIN = frozenset(
    {
        b"accept-ch",
        b"activate-storage-access",
        b"alt-svc",
        b"authentication-info",
        b"clear-site-data",
        b"content-security-policy",
        b"content-security-policy-report-only",
        b"critical-ch",
        b"document-policy",
        b"document-policy-report-only",
        b"expect-ct",
        b"feature-policy",
        b"integrity-policy",
        b"integrity-policy-report-only",
        b"nel",
        b"observe-browsing-topics",
        b"origin-agent-cluster",
        b"origin-trial",
        b"permissions-policy",
        b"permissions-policy-report-only",
        b"public-key-pins",
        b"public-key-pins-report-only",
        b"refresh",
        b"report-to",
        b"reporting-endpoints",
        b"require-document-policy",
        b"service-worker-allowed",
        b"set-cookie",
        b"set-cookie2",
        b"set-login",
        b"speculation-rules",
        b"strict-transport-security",
        b"supports-loading-mode",
        b"timing-allow-origin",
        b"use-as-dictionary",
        b"www-authenticate",
        b"x-content-type-options",
        b"x-frame-options",
        b"x-permitted-cross-domain-policies",
        b"x-xss-protection",
    }
)
# The caller gets its own request id, and a location of the gateway.
_NOT_RETURNED = _HOP_BY_HOP | _OF_THE_ORIGIN | {LOCATION, REQUEST_ID_HEADER.encode()}
_NOT_RETURNED_PREFIXES = (b"x-podium-", b"access-control-", b"cross-origin-", b"sec-")
# A browser that opens an answer as a page runs no script of it, and treats it as a page of another origin.
_CONFINED = [(b"content-security-policy", b"sandbox"), (b"x-content-type-options", b"nosniff")]

# RFC 9110, sections 5.1 and 5.5. HTTP servers refuse other headers, some of them by closing the connection.
_VALID_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
_INVALID_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

# Later versions may add fields after the flags; version ff and ids of zeros are invalid.
_VALID_TRACEPARENT = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})"
    rb"(?P<more>-.*)?"
)
_TRACE_VERSION = "00"
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class Span:
    """The gateway's span of a trace: the parent of the agent's span."""

    trace_id: str
    span_id: str
    flags: int
    parent: bytes | None
    """The caller's `traceparent` whose trace this span continues; None for the root of a trace."""

    @property
    def continued(self) -> bool:
        """Whether this is a span of the caller's trace."""
        return self.parent is not None

    @property
    def traceparent(self) -> str:
        """The header value that the agent receives."""
        return f"{_TRACE_VERSION}-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def child_of(given: Sequence[bytes]) -> Span:
    """A child of the caller's span; the root of a new trace unless the caller sent exactly one valid `traceparent`."""
    found = _VALID_TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
    if found is None or (found["version"] == _TRACE_VERSION.encode() and found["more"]):
        return Span(os.urandom(16).hex(), os.urandom(8).hex(), _SAMPLED, None)
    # Flags that version 00 does not define must not be passed to the agent.
    return Span(found["trace"].decode(), os.urandom(8).hex(), int(found["flags"], 16) & _SAMPLED, given[0])


def request_headers(given: RawHeaders) -> tuple[CIMultiDict[str], Span]:
    """The caller's headers that the agent receives, with a request id and the gateway's span as `traceparent`."""
    headers = [(name.lower(), value) for name, value in given]
    span = child_of([value for name, value in headers if name == _TRACEPARENT])
    stripped = _NOT_FORWARDED | _named_by_connection(headers)
    forwarded: CIMultiDict[str] = CIMultiDict(
        (name.decode("latin-1"), _text(value))
        for name, value in headers
        # Some servers of agents, those of CGI and WSGI among them, take `content_length` for `content-length`.
        if (meant := name.replace(b"_", b"-")) not in stripped and not meant.startswith(_ORIGIN_PREFIX)
    )
    forwarded.setdefault(REQUEST_ID_HEADER, uuid4().hex)
    forwarded[TRACEPARENT] = span.traceparent
    if not span.continued:
        # Tracestate belongs to the trace of the invalid or missing traceparent.
        forwarded.popall(TRACESTATE, None)
    return forwarded, span


def caller_authorization(given: RawHeaders, recognizes: Callable[[str], bool]) -> str | None:
    """The `Authorization` for an agent that authenticates its callers itself.

    None if the caller sent none or several, or one that `recognizes` says is for Podium.
    """
    values = [value for name, value in given if name.lower() == _AUTHORIZATION]
    if len(values) != 1:
        return None
    value = _text(values[0])
    scheme, _, credential = value.partition(" ")
    return None if scheme.lower() == "bearer" and recognizes(credential.strip()) else value


def response_headers(given: RawHeaders, route: Route, metadata_url: str | None = None) -> list[tuple[bytes, bytes]]:
    """The agent's headers that the caller receives, in their order, followed by which deployment and instance answered.

    Without `Location`, which depends on the status. With the agent's challenges if it authenticates its callers itself:
    they get `metadata_url` as the place of its metadata. Raises `AgentProtocolError` for characters that no header may
    contain.
    """
    headers = [(name.lower(), value) for name, value in given]
    stripped = _NOT_RETURNED | _named_by_connection(headers)
    returned = [
        (name, value)
        for name, value in headers
        if (meant := name.replace(b"_", b"-")) not in stripped and not meant.startswith(_NOT_RETURNED_PREFIXES)
    ]
    if metadata_url is not None:
        challenges = (value for name, value in headers if name == CHALLENGE)
        returned += [(CHALLENGE, value) for value in returned_challenges(challenges, metadata_url)]
    # All at once, since this is done for each call.
    valid = _VALID_NAMES.fullmatch(b"".join(name for name, _ in returned))
    if not valid or _INVALID_IN_VALUE.search(b"".join(value for _, value in returned)):
        raise AgentProtocolError("The agent's answer has a header with characters that are not allowed there.")
    returned += _CONFINED
    returned += [(name.encode(), value.encode()) for name, value in route_headers(route).items()]
    return returned


def route_headers(route: Route) -> dict[str, str]:
    """The generation that answered, the deployment id unless the legacy address answered, and the instance's name."""
    headers = {GENERATION_HEADER: str(route.generation)}
    if route.deployment_id is not None:
        headers[DEPLOYMENT_HEADER] = route.deployment_id
    if route.instance_id:
        headers[INSTANCE_HEADER] = route.instance_id
    return headers


def _named_by_connection(headers: RawHeaders) -> frozenset[bytes]:
    return frozenset(
        token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")
    )


def _text(value: bytes) -> str:
    """The header value decoded so that the client library sends the same bytes; non-UTF-8 bytes are re-encoded."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
