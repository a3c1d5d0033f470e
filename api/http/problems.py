"""How refusals look: problem+json (RFC 9457), on RPC routes a JSON-RPC error object; nothing internal leaks."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import ResponseSpec
from litestar.types import ExceptionHandlersMap

from api.http.jsonrpc import error_response, is_rpc
from api.http.responses import Problem
from services.errors import InvalidRequest, MessageTooLarge, PodiumError, Unauthorized, Unavailable

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:podium:problem:"
CHALLENGE = 'Bearer realm="podium"'

log = structlog.get_logger(__name__)

AnyRequest = Request[Any, Any, Any]


class RequestRefused(PodiumError):
    """The request cannot be served."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = HTTPStatus(status).phrase.lower().replace(" ", "-")


class Forbidden(PodiumError):
    """This API serves programs on its own machine only: set PODIUM_API_KEY to serve others."""

    status = 403
    reason = "not-local"


def documented(*statuses: int) -> dict[int, ResponseSpec]:
    """The refusals of a route, for its OpenAPI description."""
    return {
        status: ResponseSpec(
            Problem, description=HTTPStatus(status).phrase, media_type=MEDIA_TYPE, generate_examples=False
        )
        for status in sorted({*statuses, 400, 401, 503})
    }


def render_domain_error(request: AnyRequest, error: PodiumError) -> Response[Any]:
    """A refusal that Podium meant."""
    return _response(request, error)


def render_framework_error(request: AnyRequest, error: HTTPException) -> Response[Any]:
    """A refusal by the framework: no such route or method, a parameter that cannot be read, a body too large."""
    return _response(request, _translated(error), error.headers)


def render_defect(request: AnyRequest, error: Exception) -> Response[Any]:
    """Anything else is a defect: logged in full, answered without any of it."""
    log.error(
        "A request failed for a reason of our own.",
        action="request.failed",
        method=request.method,
        route=request.scope.get("path_template"),
        exc_info=error,
    )
    return _response(request, PodiumError("Something went wrong on our side; the log of this process has details."))


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    PodiumError: render_domain_error,
    HTTPException: render_framework_error,
    Exception: render_defect,
}


def refusal_headers(error: PodiumError) -> dict[str, str]:
    """Headers that belong to a refusal, whatever its body looks like."""
    if isinstance(error, Unavailable):
        return {"retry-after": str(error.retry_after_seconds)}
    if isinstance(error, Unauthorized):
        return {"www-authenticate": CHALLENGE}
    return {}


def _translated(error: HTTPException) -> PodiumError:
    if isinstance(error, ValidationException):
        return _invalid(error)
    if error.status_code == MessageTooLarge.status:
        return MessageTooLarge("The body is too large.")
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return RequestRefused(error.status_code, "The request could not be read to its end.")
    return RequestRefused(error.status_code, _sentence(error))


def _sentence(error: HTTPException) -> str:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return "There is nothing at this path: /openapi.json lists what there is."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"This path takes {(error.headers or {}).get('allow')} only."
    return error.detail


def _invalid(error: ValidationException) -> InvalidRequest:
    """The first parameter that the framework could not read."""
    complaints = error.extra if isinstance(error.extra, list) else []
    first: Mapping[str, Any] = complaints[0] if complaints else {}
    field = first.get("key")
    if field == "data":
        return InvalidRequest("A JSON object is needed as the body.")
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
