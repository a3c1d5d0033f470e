"""The routes of event streams: events of one agent or of all agents, resumable from a cursor."""

from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import UUID

from litestar import get
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, HeaderParameter, QueryParameter
from litestar.types import ASGIApp

from api.auth.guard import admission_of
from api.events.stream import MEDIA_TYPE, EventStream, Subscription
from api.http.access import READ, needs
from api.http.parameters import AnyRequest, agent_uuid
from api.http.problems import documented
from api.resources import Injected, Resources
from contracts.events import EVENT_TYPES
from services.domain.identity import Identity
from services.errors import InvalidRequest
from services.events.log import EventsRemoved, Position, origin, parse_cursor, read_events
from services.storage.database import in_transaction

LAST_EVENT_ID = "Last-Event-ID"
# The cursor before the oldest stored event.
OLDEST = "oldest"
# A sequence for the events of one agent; `xid.id` for those of all agents.
CURSOR_PATTERN = r"[0-9]+(\.[0-9]+)?"
KNOWN_TYPES = tuple(EVENT_TYPES.values())

LastEventId = Annotated[
    str | None,
    HeaderParameter(
        name=LAST_EVENT_ID,
        description="The cursor that a client sends when it reconnects; empty for none.",
        schema_extra={"pattern": rf"^({OLDEST}|{CURSOR_PATTERN})?$"},
    ),
]
Since = Annotated[
    str | None,
    QueryParameter(
        description=f"The cursor if {LAST_EVENT_ID} is not sent: the `id` of an event, or '{OLDEST}'. "
        "Without either, the stream starts with the next event.",
        schema_extra={"pattern": rf"^({OLDEST}|{CURSOR_PATTERN})$"},
    ),
]
Types = Annotated[
    list[str] | None,
    QueryParameter(
        name="type",
        description="Only events of this type; may be repeated.",
        schema_extra={"items": {"type": "string", "enum": sorted(KNOWN_TYPES)}},
    ),
]
Follow = Annotated[bool, QueryParameter(description="false: end after the events that exist now.")]

RESPONSES = {
    200: ResponseSpec(
        str,
        description=f"Server-Sent Events, each with a CloudEvent as its data and a cursor ({LAST_EVENT_ID}) as its id.",
        media_type=MEDIA_TYPE,
        generate_examples=False,
    )
}


@get("/events", opt=needs("read", agents="answer"), responses={**RESPONSES, **documented(410)})
async def follow_events(
    *,
    request: AnyRequest,
    resources: Injected,
    last_event_id: LastEventId = None,
    since: Since = None,
    types: Types = None,
    follow: Follow = True,
) -> ASGIApp:
    """The events of all agents. `x-podium-cursor` of the list of agents is also a cursor.

    An event appears as soon as it is committed, before the broker has it.
    """
    start, now = await _start(resources, None, last_event_id, since)
    return EventStream(resources, Subscription(None, start, now, _known(types), follow, *_who(request, resources)))


@get(
    "/agents/{agent_id:str}/events",
    opt=READ,
    responses={**RESPONSES, **documented(404, 410)},
)
async def follow_events_of_agent(
    *,
    agent_id: FromPath[str],
    request: AnyRequest,
    resources: Injected,
    last_event_id: LastEventId = None,
    since: Since = None,
    types: Types = None,
    follow: Follow = True,
) -> ASGIApp:
    """The events of one agent, deleted or not; cursors are sequences.

    An event appears as soon as it is committed, before the broker has it.
    """
    uuid = agent_uuid(agent_id)
    start, now = await _start(resources, uuid, last_event_id, since)
    return EventStream(resources, Subscription(uuid, start, now, _known(types), follow, *_who(request, resources)))


def _who(request: AnyRequest, resources: Resources) -> tuple[Identity, Callable[[], Awaitable[Identity]] | None]:
    """Who reads the stream, and how to find out whether its key is still valid."""
    admission = admission_of(request, resources, request.route_handler)
    return admission.identity, admission.identify if admission.identity.key_id is not None else None


async def _start(
    resources: Resources, agent_id: UUID | None, last_event_id: str | None, since: str | None
) -> tuple[Position, Position]:
    """The position where the stream starts, and the position of the newest event.

    Raises `AgentNotFound`, `EventsRemoved`, and `InvalidRequest` for an invalid cursor.
    """
    if since not in {None, OLDEST}:
        _position(since, agent_id, "since")
    # Some clients send an empty Last-Event-ID if they have none.
    cursor, field = (last_event_id, LAST_EVENT_ID) if last_event_id else (since, "since")
    named = None if cursor in {None, OLDEST} else _position(cursor, agent_id, field)
    found = await in_transaction(
        resources.reads, lambda session: read_events(session, agent_id, origin(agent_id), limit=0)
    )
    if named is None:
        return (found.now if cursor is None else found.removed), found.now
    if named > found.now:
        message = (
            f"{field} is after the newest event: it comes from another installation or from before a restore. "
            "Read the agents again, then follow from the cursor of that answer."
        )
        raise InvalidRequest(message, field=field)
    if named < found.removed:
        raise EventsRemoved
    return named, found.now


def _known(types: list[str] | None) -> frozenset[str] | None:
    """The requested event types; None for all of them. Raises `InvalidRequest` for an unknown one.

    During an upgrade, a newer process may write types that this one does not know.
    """
    if not types:
        return None
    requested = frozenset(types)
    if not requested <= set(KNOWN_TYPES):
        raise InvalidRequest(f"type must be one of {', '.join(KNOWN_TYPES)}.", field="type")
    return requested


def _position(cursor: str | None, agent_id: UUID | None, field: str) -> Position:
    try:
        return parse_cursor(cursor or "", agent_id)
    except ValueError as exc:
        form = "the id of an event, such as 4711.42" if agent_id is None else "a sequence, such as 42"
        raise InvalidRequest(f"{field} must be {form}, or '{OLDEST}'.", field=field) from exc


ROUTES = [follow_events, follow_events_of_agent]
