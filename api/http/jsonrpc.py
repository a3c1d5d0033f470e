"""Errors on RPC routes: JSON-RPC 2.0 error objects (https://www.jsonrpc.org/specification#error_object)."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from litestar import Response
from litestar.openapi import ResponseSpec
from pydantic_core import from_json

from api.http.responses import RpcError, RpcErrorAnswer, RpcErrorData
from services.errors import PodiumError

# Every error except a bad request or an internal error is an "implementation-defined server error" with a `reason`.
SERVER_ERROR = -32000
CODES = {400: -32600, 413: -32600, 431: -32600, 500: -32603}

CallId = str | int | float | None

_RPC_PATH = re.compile(r"/agents/.+/rpc/?", re.DOTALL)


class ForwardingFailure(PodiumError):
    """The call could not be forwarded to the agent."""

    status = 502
    reason = "agent-unreachable"
    sent = False
    # Enough of these in a row open the circuit breaker.
    counts_as_failure = False


def is_rpc(path: str) -> bool:
    """Whether this is the path of an RPC route."""
    return _RPC_PATH.fullmatch(path) is not None


def request_id(body: bytes) -> CallId:
    """The JSON-RPC id in a request body; None without a valid one, as for a batch."""
    try:
        given = from_json(body)["id"]
    except (ValueError, TypeError, KeyError):
        return None
    return given if isinstance(given, str | int | float) and not isinstance(given, bool) else None


def error_response(
    error: PodiumError, *, call_id: CallId = None, headers: Mapping[str, str] | None = None, status: int | None = None
) -> Response[Any]:
    """The error as a JSON-RPC answer, with the error's HTTP status unless `status` is given.

    If the agent may have received the call, `x-should-retry: false` is added: known clients retry three times by
    default.
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
    """The errors of an RPC route, for its OpenAPI description."""
    return {
        status: ResponseSpec(RpcErrorAnswer, description=HTTPStatus(status).phrase, generate_examples=False)
        for status in (400, 401, 403, 404, 408, 410, 413, 429, 431, 502, 503, 504)
    }
