"""Refusals on RPC routes: JSON-RPC 2.0 error objects (https://www.jsonrpc.org/specification#error_object)."""

import re
from collections.abc import Mapping
from typing import Any

from litestar import Response
from pydantic_core import from_json, to_json

from services.errors import PodiumError

# Everything but a bad request or a defect of ours is an "implementation-defined server error"; `reason` says which.
SERVER_ERROR = -32000
CODES = {400: -32600, 413: -32600, 500: -32603}

CallId = str | int | float | None

_RPC_PATH = re.compile(r"/agents/.+/rpc/?")


class ForwardingFailure(PodiumError):
    """The agent could not be asked."""

    status = 502
    reason = "agent-unreachable"
    sent = False


def is_rpc(path: str) -> bool:
    """Whether a path belongs to the gateway."""
    return _RPC_PATH.fullmatch(path) is not None


def request_id(body: bytes) -> CallId:
    """The id of the call in a request body; None if there is none, as for a batch."""
    try:
        given = from_json(body)["id"]
    except (ValueError, TypeError, KeyError):
        return None
    return given if isinstance(given, str | int | float) and not isinstance(given, bool) else None


def error_response(
    error: PodiumError, *, call_id: CallId = None, headers: Mapping[str, str] | None = None
) -> Response[Any]:
    """The refusal as the client of a call gets it; known clients repeat a call three times unless told otherwise."""
    sent = isinstance(error, ForwardingFailure) and error.sent
    content = {
        "jsonrpc": "2.0",
        "id": call_id,
        "error": {
            "code": CODES.get(error.status, SERVER_ERROR),
            "message": error.message,
            "data": {"reason": error.reason, "sent": sent},
        },
    }
    headers = {**(headers or {}), **({"x-should-retry": "false"} if sent else {})}
    return Response(to_json(content), status_code=error.status, headers=headers, media_type="application/json")
