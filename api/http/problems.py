"""Rendering of errors: problem+json (RFC 9457), or JSON-RPC error objects on RPC routes, without internal details."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from litestar import Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import ResponseSpec
from litestar.types import ExceptionHandlersMap

from api.http.jsonrpc import error_response, is_rpc
from api.http.parameters import AnyRequest
from api.http.responses import Problem
from services.errors import (
    InsufficientScope,
    InvalidRequest,
    MessageTooLarge,
    PodiumError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:podium:problem:"
CHALLENGE = 'Bearer realm="podium"'

log = structlog.get_logger(__name__)


class RequestRefused(PodiumError):
    """The request cannot be served."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = HTTPStatus(status).phrase.lower().replace(" ", "-")


class Forbidden(PodiumError):
    """This API serves only programs on its own machine: set PODIUM_API_KEY to serve others."""

    status = 403
    reason = "not-local"


class CrossOrigin(PodiumError):
    """A web page of another origin requested this change: set PODIUM_API_KEY, and send the key with each request."""

    status = 403
    reason = "cross-origin"


def documented(*statuses: int) -> dict[int, ResponseSpec]:
    """The errors of a route, for its OpenAPI description."""
    return documented_public(*statuses, 401, 429, 503)


def documented_public(*statuses: int) -> dict[int, ResponseSpec]:
    """The errors of a route that needs neither a key nor the database, for its OpenAPI description."""
    return {
        status: ResponseSpec(
            Problem, description=HTTPStatus(status).phrase, media_type=MEDIA_TYPE, generate_examples=False
        )
        for status in sorted({*statuses, 400, 403})
    }


def render_domain_error(request: AnyRequest, error: PodiumError) -> Response[Any]:
    """The answer for an error of Podium."""
    return _response(request, error)


def render_framework_error(request: AnyRequest, error: HTTPException) -> Response[Any]:
    """The answer for an error of Litestar: an unknown route or method, an invalid parameter, a body too large."""
    return _response(request, described(error), error.headers)


def render_defect(request: AnyRequest, error: Exception) -> Response[Any]:
    """The answer for any other exception, without its details; the log gets the traceback."""
    return _response(request, log_defect(request, error))


def log_defect(request: AnyRequest, error: Exception) -> PodiumError:
    """Log the traceback; returns what callers are told."""
    log.error(
        "A request failed because of an internal error.",
        action="request.failed",
        method=request.method,
        route=request.scope.get("path_template"),
        exc_info=error,
    )
    return PodiumError("An internal error occurred; the log of this process has the details.")


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    PodiumError: render_domain_error,
    HTTPException: render_framework_error,
    Exception: render_defect,
}


def refusal_headers(error: PodiumError) -> dict[str, str]:
    """The headers of an error, in either format of its body."""
    if isinstance(error, Unavailable | TooManyRequests):
        return {"retry-after": str(error.retry_after_seconds)}
    if isinstance(error, Unauthorized):
        return {"www-authenticate": CHALLENGE}
    if isinstance(error, InsufficientScope):
        # https://www.rfc-editor.org/rfc/rfc6750#section-3.1
        return {"www-authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{" ".join(error.scopes)}"'}
    return {}


def described(error: HTTPException) -> PodiumError:
    """An error of Litestar as an error of Podium, with a sentence that says what to do."""
    if isinstance(error, ValidationException):
        return _invalid(error)
    if error.status_code == MessageTooLarge.status:
        return MessageTooLarge("The body is too large.")
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return RequestRefused(error.status_code, "The request could not be read completely.")
    return RequestRefused(error.status_code, _sentence(error))


def _sentence(error: HTTPException) -> str:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return "No route has this path: /openapi.json lists all routes."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"This path accepts only {(error.headers or {}).get('allow')}."
    return error.detail


def _invalid(error: ValidationException) -> InvalidRequest:
    """The error for the first parameter that Litestar could not read."""
    complaints = error.extra if isinstance(error.extra, list) else []
    first: Mapping[str, Any] = complaints[0] if complaints else {}
    field = first.get("key")
    if field == "data":
        return InvalidRequest("The body must be a JSON object.")
    return InvalidRequest(f"{field}: {first.get('message')}" if field else error.detail, field=field)


def _response(request: AnyRequest, error: PodiumError, headers: Mapping[str, str] | None = None) -> Response[Any]:
    headers = {**(headers or {}), **refusal_headers(error)}
    if is_rpc(request.scope["path"]):
        return error_response(error, headers=headers)
    problem = Problem(
        type=f"{TYPE_PREFIX}{error.reason}",
        title=error.reason.replace("-", " ").capitalize(),
        status=error.status,
        detail=error.message,
        field=error.field if isinstance(error, InvalidRequest) else None,
    )
    content = problem.model_dump_json(exclude_none=True).encode()
    return Response(content, status_code=error.status, headers=headers, media_type=MEDIA_TYPE)
