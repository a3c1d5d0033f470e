"""Whether callers of an agent get the gateway's own failures as HTTP errors or as answers to their calls.

A client of MCP 1.x loses its whole session on an HTTP error: its agent asks for `error_style: "jsonrpc"`.
"""

from http import HTTPStatus

from contracts.fields import ErrorStyle
from services.errors import MessageTooLarge, PodiumError, Unavailable

# Paths of a few dozen bytes each.
REMEMBERED_PATHS = 10_000


class ErrorStyles:
    """What each path's agent asked for last: sessions outlive a time in which the database cannot be asked."""

    def __init__(self) -> None:
        self._jsonrpc: dict[str, None] = {}

    def learn(self, path: str, style: ErrorStyle) -> None:
        """What was read for this path."""
        self._jsonrpc.pop(path, None)
        if style == "jsonrpc":
            self._jsonrpc[path] = None
            if len(self._jsonrpc) > REMEMBERED_PATHS:
                del self._jsonrpc[next(iter(self._jsonrpc))]

    def status_of(self, error: PodiumError, method: str, path: str) -> int:
        """The HTTP status of a refusal: 200 for calls, which are POSTs, where the agent wants it.

        A GET or DELETE calls nothing: a failed one keeps its status, since 200 would say that it was done.
        """
        style = error.error_style
        if style is None and isinstance(error, Unavailable | MessageTooLarge) and path in self._jsonrpc:
            style = "jsonrpc"
        return HTTPStatus.OK if style == "jsonrpc" and method == "POST" else error.status
