"""Refusals on RPC routes: JSON-RPC 2.0 error objects (https://www.jsonrpc.org/specification#error_object)."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from litestar import Response
from litestar.openapi import ResponseSpec
from pydantic_core import from_json

from api.http.responses import RpcError, RpcErrorAnswer, RpcErrorData
from services.errors import PodiumError

# Everything but a bad request or a defect of ours is an "implementation-defined server error"; `reason` says which.
SERVER_ERROR = -32000
CODES = {400: -32600, 413: -32600, 431: -32600, 500: -32603}

CallId = str | int | float | None

_RPC_PATH = re.compile(r"/agents/.+/rpc/?")


class ForwardingFailure(PodiumError):
    """The agent could not be asked."""

    status = 502
    reason = "agent-unreachable"
    sent = False
    # Several of these in a row, and the agent is left alone for a moment.
    says_agent_is_away = False


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
    error: PodiumError, *, call_id: CallId = None, headers: Mapping[str, str] | None = None, status: int | None = None
) -> Response[Any]:
    """The refusal as the client of a call gets it, under the error's own status unless another one is given.

    Known clients repeat a call three times unless told otherwise.
    """
    sent = isinstance(error, ForwardingFailure) and error.sent
    answer = RpcErrorAnswer(
        id=call_id,
        error=RpcError(
            code=CODES.get(error.status, SERVER_ERROR),
            message=error.message,
            data=RpcErrorData(reason=error.reason, sent=sent),
        ),
    )
    headers = {**(headers or {}), **({"x-should-retry": "false"} if sent else {})}
    content = answer.model_dump_json().encode()
    return Response(content, status_code=status or error.status, headers=headers, media_type="application/json")


def documented() -> dict[int, ResponseSpec]:
    """The gateway's own answers, for the OpenAPI description of an RPC route."""
    return {
        status: ResponseSpec(RpcErrorAnswer, description=HTTPStatus(status).phrase, generate_examples=False)
        for status in (400, 401, 404, 408, 410, 413, 431, 502, 503, 504)
    }
