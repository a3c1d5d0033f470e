"""What requests say in their path, query and headers."""

import re
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from litestar import Request
from litestar.params import QueryParameter
from pydantic import TypeAdapter, ValidationError

from api.http.preconditions import wanted_generation
from contracts.fields import AGENT_NAME_PATTERN, DEPLOYMENT_ID_PATTERN, TRACEPARENT_PATTERN, Moment
from services.errors import AgentNotFound, DeploymentNotFound, InvalidRequest
from services.promotion.promote import Caller
from services.storage.pages import Direction

MAX_LIMIT = 1000
# Far beyond any list, and times MAX_LIMIT still an offset that PostgreSQL can count to.
MAX_PAGE_NUMBER = 10**9

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT, description=f"Rows per page, at most {MAX_LIMIT}.")]
PageNumber = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE_NUMBER, description="Pages start at 1.")]
OrderDirection = Annotated[Direction, QueryParameter(description="asc or desc.")]

_MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)

AnyRequest = Request[Any, Any, Any]


def agent_uuid(text: str) -> UUID:
    """The agent id in a path. Raises `AgentNotFound` for anything that could not be one."""
    try:
        agent_id = UUID(text)
    except ValueError as exc:
        raise AgentNotFound from exc
    if str(agent_id) != text.lower():
        raise AgentNotFound
    return agent_id


def agent_name(text: str) -> str:
    """The agent name in a path. Raises `AgentNotFound` for anything that could not be one."""
    if not re.fullmatch(AGENT_NAME_PATTERN, text):
        raise AgentNotFound
    return text


def deployment_key(text: str) -> str:
    """The deployment id in a path. Raises `DeploymentNotFound` for anything that could not be one."""
    if not re.fullmatch(DEPLOYMENT_ID_PATTERN, text):
        raise DeploymentNotFound
    return text


def moment(text: str | None, *, field: str) -> datetime | None:
    """A point in time, or None if none is given. Raises `InvalidRequest`."""
    if text is None:
        return None
    try:
        return _MOMENT.validate_python(text)
    except ValidationError as exc:
        message = f"{field} must be an ISO 8601 time with its zone, such as 2026-01-31T12:00:00Z."
        raise InvalidRequest(message, field=field) from exc


def caller(request: AnyRequest, actor: str, reason: str | None = None) -> Caller:
    """Who asks, why, and on which condition. Raises `InvalidRequest` for a malformed If-Match."""
    return Caller(
        actor=actor,
        reason=reason,
        if_generation=wanted_generation(request.headers.getall("if-match", [])),
        traceparent=traceparent(request),
    )


def traceparent(request: AnyRequest) -> str | None:
    """The W3C trace context of the request (https://www.w3.org/TR/trace-context/); None if it is none."""
    given = request.headers.getall("traceparent", [])
    return given[0] if len(given) == 1 and re.fullmatch(TRACEPARENT_PATTERN, given[0]) else None
