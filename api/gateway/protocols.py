"""What the headers of a call say about its protocol, in a bounded set of values for labels and spans.

MCP clients repeat the method of a call and its tool in headers (https://modelcontextprotocol.io, since 2026-07-28);
A2A clients send the version of their protocol (https://a2a-protocol.org). Everything else is `other`.
"""

import re
from dataclasses import dataclass

from multidict import CIMultiDict

OTHER = "other"
# A process names so many tools and prompts in its spans; further ones are `other`.
NAMES_MAX = 100

MCP_METHODS = frozenset(
    {
        "completion/complete",
        "elicitation/create",
        "initialize",
        "logging/setLevel",
        "notifications/cancelled",
        "notifications/initialized",
        "notifications/progress",
        "notifications/roots/list_changed",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "roots/list",
        "sampling/createMessage",
        "server/discover",
        "subscriptions/listen",
        "tasks/cancel",
        "tasks/get",
        "tasks/list",
        "tasks/result",
        "tasks/update",
        "tools/call",
        "tools/list",
    }
)
A2A_VERSIONS = frozenset({"0.3", "1.0"})
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Protocol:
    """The bounded values of one call; None where the header is missing."""

    mcp_method: str | None
    a2a_version: str | None


def protocol_of(headers: CIMultiDict[str]) -> Protocol:
    """The protocol of a call with these headers."""
    method, version = headers.get("mcp-method"), headers.get("a2a-version")
    return Protocol(
        method if method is None or method in MCP_METHODS else OTHER,
        version if version is None or version in A2A_VERSIONS else OTHER,
    )


class BoundedNames:
    """The first names of tools and prompts that a process sees."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def of(self, name: str) -> str:
        """The name itself, or `other` if it is unusual or one too many."""
        if name in self._names:
            return name
        if len(self._names) >= NAMES_MAX or not _NAME.fullmatch(name):
            return OTHER
        self._names.add(name)
        return name
