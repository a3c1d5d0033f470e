"""Parameters in paths, queries and headers of requests."""

import re
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from litestar import Request
from litestar.params import QueryParameter
from pydantic import TypeAdapter, ValidationError

from api.http.preconditions import expected_generation
from contracts.fields import AGENT_NAME_PATTERN, DEPLOYMENT_ID_PATTERN, TRACEPARENT_PATTERN, Moment
from services.domain.caller import Caller
from services.domain.identity import Identity
from services.errors import (
    AgentNotFound,
    DeploymentNotFound,
    InvalidRequest,
    KeyNotFound,
    ParkedNotFound,
    PodiumError,
    WebhookNotFound,
)
from services.storage.pages import Direction

REQUEST_ID_HEADER = "x-request-id"
# Whom the caller acts for, in its own words.
ON_BEHALF_OF_HEADER = "x-podium-on-behalf-of"
SHORT_TEXT_MAX_LENGTH = 200

MAX_LIMIT = 1000
# Larger than any list; times MAX_LIMIT it is still a valid offset in PostgreSQL.
MAX_PAGE_NUMBER = 10**9

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT, description=f"Rows per page, at most {MAX_LIMIT}.")]
PageNumber = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE_NUMBER, description="Pages start at 1.")]
OrderDirection = Annotated[Direction, QueryParameter(description="asc or desc.")]

AgentFilter = Annotated[
    str | None,
    QueryParameter(
        description="Only those for this agent name; the agent need not exist.",
        schema_extra={"pattern": AGENT_NAME_PATTERN},
    ),
]

_MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)

AnyRequest = Request[Any, Any, Any]


def agent_uuid(text: str) -> UUID:
    """The agent id in a path. Raises `AgentNotFound` for a malformed one."""
    return _path_uuid(text, AgentNotFound)


def parked_uuid(text: str) -> UUID:
    """The id of a parked message in a path. Raises `ParkedNotFound` for a malformed one."""
    return _path_uuid(text, ParkedNotFound)


def key_uuid(text: str) -> UUID:
    """The id of a key in a path. Raises `KeyNotFound` for a malformed one."""
    return _path_uuid(text, KeyNotFound)


def webhook_uuid(text: str) -> UUID:
    """The id of a webhook in a path. Raises `WebhookNotFound` for a malformed one."""
    return _path_uuid(text, WebhookNotFound)


def agent_name(text: str) -> str:
    """The agent name in a path. Raises `AgentNotFound` for a malformed one."""
    if not re.fullmatch(AGENT_NAME_PATTERN, text):
        raise AgentNotFound
    return text


def agent_filter(text: str | None) -> str | None:
    """The agent name in the query parameter `agent`, if there is one. Raises `InvalidRequest` for a malformed one."""
    if text is not None and not re.fullmatch(AGENT_NAME_PATTERN, text):
        raise InvalidRequest("agent must be an agent's name: small letters, digits and hyphens.", field="agent")
    return text


def after_uuid(text: str | None) -> UUID | None:
    """The id in the query parameter `after`, if there is one. Raises `InvalidRequest` for a malformed one."""
    try:
        return None if text is None else UUID(text)
    except ValueError as exc:
        raise InvalidRequest("after must be the id of an agent.", field="after") from exc


def deployment_key(text: str) -> str:
    """The deployment id in a path. Raises `DeploymentNotFound` for a malformed one."""
    if not re.fullmatch(DEPLOYMENT_ID_PATTERN, text):
        raise DeploymentNotFound
    return text


def moment(text: str | None, *, field: str) -> datetime | None:
    """The time in a parameter; None if the parameter is missing. Raises `InvalidRequest`."""
    if text is None:
        return None
    try:
        return _MOMENT.validate_python(text)
    except ValidationError as exc:
        message = f"{field} must be an ISO 8601 time with a time zone, such as 2026-01-31T12:00:00Z."
        raise InvalidRequest(message, field=field) from exc


def caller(request: AnyRequest, reason: str | None = None) -> Caller:
    """Who changes something, why, for whom, on which condition, and in which request. Raises `InvalidRequest`."""
    return Caller(
        actor=identity_of(request).actor,
        reason=reason,
        if_generation=if_match(request),
        traceparent=traceparent(request),
        request_id=_short_text(request, REQUEST_ID_HEADER),
        on_behalf_of=_short_text(request, ON_BEHALF_OF_HEADER),
    )


def identity_of(request: AnyRequest) -> Identity:
    """Who calls, as the guard has found."""
    identity = request.scope["user"]
    assert isinstance(identity, Identity)
    return identity


def if_match(request: AnyRequest) -> int | None:
    """The generation in the request's If-Match; None for any. Raises `InvalidRequest`."""
    return expected_generation(request.headers.getall("if-match", []))


def traceparent(request: AnyRequest) -> str | None:
    """The `traceparent` of the request (https://www.w3.org/TR/trace-context/); None unless there is one valid value."""
    given = request.headers.getall("traceparent", [])
    return given[0] if len(given) == 1 and re.fullmatch(TRACEPARENT_PATTERN, given[0]) else None


def _short_text(request: AnyRequest, header: str) -> str | None:
    """The text in a header; None without one. Raises `InvalidRequest` for a long, repeated or unprintable one."""
    given = request.headers.getall(header, [])
    if not given:
        return None
    if len(given) > 1 or len(given[0]) > SHORT_TEXT_MAX_LENGTH or not given[0].isprintable():
        raise InvalidRequest(
            f"{header} must be sent once, with at most {SHORT_TEXT_MAX_LENGTH} printable characters.", field=header
        )
    return given[0] or None


def _path_uuid(text: str, not_found: type[PodiumError]) -> UUID:
    """The UUID in its canonical form, in either case; a malformed one raises `not_found`, as an unknown one does."""
    try:
        found = UUID(text)
    except ValueError as exc:
        raise not_found from exc
    if str(found) != text.lower():
        raise not_found
    return found
