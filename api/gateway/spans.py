"""The spans of one forwarded call: the gateway as the caller's server, and as the agent's client.

They have no body, no query and no header but those that `protocols` bounds.
"""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from litestar.types import HTTPScope
from multidict import CIMultiDict

from api.gateway.protocols import BoundedNames, Protocol, protocol_of
from services.routing.routes import Route
from services.tracing.attributes import agent_attributes

if TYPE_CHECKING:
    from api.gateway.telemetry import CallRecord
    from services.tracing.tracer import Span, Tracer

_PORTS = {"http": 80, "https": 443}
_CALLER_ERROR, _SERVER_ERROR = 400, 500
# What a name in `Mcp-Name` is, by method (https://opentelemetry.io/docs/specs/semconv/gen-ai/mcp/).
_NAMED = {"tools/call": "gen_ai.tool.name", "prompts/get": "gen_ai.prompt.name"}


class Tracing:
    """Starts the spans of the calls of one process."""

    def __init__(self, tracer: "Tracer") -> None:
        self.tracer = tracer
        self.names = BoundedNames()


class CallSpans:
    """The spans of one call."""

    def __init__(self, tracing: Tracing, scope: HTTPScope, kind: str, parent: bytes | None) -> None:
        """`parent` is the caller's valid `traceparent`; None begins a trace."""
        self._tracing = tracing
        route = scope.get("path_template") or "/"
        self.server: Span = tracing.tracer.start(
            f"{scope['method']} {route}",
            "server",
            {
                "http.request.method": scope["method"],
                "http.route": route,
                "url.path": scope["path"],
                "url.scheme": scope["scheme"],
                "podium.route": kind,
            },
            parent=None if parent is None else parent.decode("latin-1"),
        )
        self.client: Span | None = None

    def begin_call(self, method: str, route: Route, headers: CIMultiDict[str]) -> "Span":
        """Start the client's span, whose `traceparent` the agent receives."""
        protocol = protocol_of(headers)
        attributes: dict[str, str | int | bool] = {
            "http.request.method": method,
            **_of_agent(route),
            **_of_protocol(protocol, headers, self._tracing.names),
        }
        name = method
        if protocol.mcp_method is not None:
            name = protocol.mcp_method
            if protocol.mcp_method == "tools/call":
                attributes["gen_ai.operation.name"] = "execute_tool"
        elif method == "POST":
            name = f"invoke_agent {route.agent_name}"
            attributes["gen_ai.operation.name"] = "invoke_agent"
        self.client = self._tracing.tracer.start(name, "client", attributes, parent=self.server)
        return self.client

    def end(self, record: "CallRecord", failure: str | None) -> None:
        """End both spans; `failure` is why the call failed, unless the agent has answered it."""
        status, route = record.status, record.route
        result = {
            "http.response.status_code": status,
            "podium.outcome": record.outcome,
            "podium.generation": None if route is None else route.generation,
            "podium.instance.id": (route.instance_id or None) if route is not None else None,
            "podium.failovers": record.failovers or None,
        }
        if self.client is not None:
            answered = None if record.first_byte_seconds is None else status
            address = {} if route is None else _address(route)
            self.client.end(
                {**result, **address, "http.response.status_code": answered},
                error=failure or _error(answered, _CALLER_ERROR),
            )
        of_agent = {} if route is None else _of_agent(route)
        self.server.end({**result, **of_agent}, error=failure or _error(status, _SERVER_ERROR))


def _of_agent(route: Route) -> dict[str, str | int | bool]:
    return agent_attributes(route.agent_name, route.agent_id, route.deployment_id)


def _address(route: Route) -> dict[str, str | int | None]:
    """The address that the call went to in the end."""
    address = urlsplit(route.acp_url)
    return {"server.address": address.hostname, "server.port": address.port or _PORTS.get(address.scheme)}


def _of_protocol(protocol: Protocol, headers: CIMultiDict[str], names: BoundedNames) -> dict[str, str]:
    found = {}
    if protocol.a2a_version is not None:
        found["podium.a2a.version"] = protocol.a2a_version
    if protocol.mcp_method is not None:
        found["mcp.method.name"] = protocol.mcp_method
        attribute, name = _NAMED.get(protocol.mcp_method), headers.get("mcp-name")
        if attribute is not None and name is not None:
            found[attribute] = names.of(name)
    return found


def _error(status: int | None, least: int) -> str | None:
    """The error that an answer with this status is."""
    return None if status is None or status < least else str(status)
