"""Live events over HTTP: those of one agent, or all of them, each stream resumable where it broke off."""

from typing import Annotated
from uuid import UUID

from litestar import get
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, HeaderParameter, QueryParameter
from litestar.types import ASGIApp

from api.events.stream import MEDIA_TYPE, EventStream, Subscription
from api.http.parameters import agent_uuid
from api.http.problems import documented
from api.resources import Injected, Resources
from contracts.events import EVENT_TYPES
from services.errors import InvalidRequest
from services.events.log import EventsRemoved, Position, origin, parse_cursor, read_events
from services.storage.database import in_transaction

LAST_EVENT_ID = "Last-Event-ID"
# As a cursor: everything that is still there.
OLDEST = "oldest"
KNOWN_TYPES = tuple(EVENT_TYPES.values())

LastEventId = Annotated[
    str | None, HeaderParameter(name=LAST_EVENT_ID, description="The cursor, as clients send it when they come back.")
]
Since = Annotated[
    str | None,
    QueryParameter(
        description=f"The cursor where there is no {LAST_EVENT_ID}: the `id` of an event, or '{OLDEST}'. "
        "None of both: from now on."
    ),
]
Types = Annotated[
    list[str] | None,
    QueryParameter(name="type", description=f"Only events of this type; may be repeated. {', '.join(KNOWN_TYPES)}."),
]
Follow = Annotated[bool, QueryParameter(description="false: end with what there is now.")]

RESPONSES = {
    200: ResponseSpec(
        str,
        description=f"Server-Sent Events, each with a CloudEvent as its data and a cursor ({LAST_EVENT_ID}) as its id.",
        media_type=MEDIA_TYPE,
        generate_examples=False,
    )
}


@get("/events", responses={**RESPONSES, **documented(410)})
async def follow_events(
    *,
    resources: Injected,
    last_event_id: LastEventId = None,
    since: Since = None,
    types: Types = None,
    follow: Follow = True,
) -> ASGIApp:
    """All events; `x-podium-cursor` of the list of agents is a cursor too. Committed is enough to be seen here."""
    start, now = await _start(resources, None, last_event_id, since)
    return EventStream(resources, Subscription(None, start, now, _wanted(types), follow))


@get("/agents/{agent_id:str}/events", responses={**RESPONSES, **documented(404, 410)})
async def follow_events_of_agent(
    *,
    agent_id: FromPath[str],
    resources: Injected,
    last_event_id: LastEventId = None,
    since: Since = None,
    types: Types = None,
    follow: Follow = True,
) -> ASGIApp:
    """The events of one agent, deleted or not; cursors are sequences. Committed is enough to be seen here."""
    wanted = agent_uuid(agent_id)
    start, now = await _start(resources, wanted, last_event_id, since)
    return EventStream(resources, Subscription(wanted, start, now, _wanted(types), follow))


async def _start(
    resources: Resources, agent_id: UUID | None, last_event_id: str | None, since: str | None
) -> tuple[Position, Position]:
    """Where the stream starts, and where the events stand now.

    Raises `AgentNotFound`, `EventsRemoved`, and `InvalidRequest` for what is no cursor of these events.
    """
    # An empty Last-Event-ID is how some clients say that they have none.
    cursor, field = (last_event_id, LAST_EVENT_ID) if last_event_id else (since, "since")
    named = None if cursor in {None, OLDEST} else _position(cursor, agent_id, field)
    there = await in_transaction(
        resources.reads, lambda session: read_events(session, agent_id, origin(agent_id), limit=0)
    )
    if named is None:
        return (there.now if cursor is None else there.removed), there.now
    if named > there.now:
        message = (
            f"{field} lies ahead of all events, so that it is from elsewhere or from before a restore: read what is "
            "there anew, then follow from its cursor."
        )
        raise InvalidRequest(message, field=field)
    if named < there.removed:
        raise EventsRemoved
    return named, there.now


def _wanted(types: list[str] | None) -> frozenset[str]:
    """The types that a client wants: all of them if it names none. Raises `InvalidRequest`."""
    wanted = frozenset(types or KNOWN_TYPES)
    if not wanted <= set(KNOWN_TYPES):
        raise InvalidRequest(f"type must be one of {', '.join(KNOWN_TYPES)}.", field="type")
    return wanted


def _position(cursor: str, agent_id: UUID | None, field: str) -> Position:
    try:
        return parse_cursor(cursor, agent_id)
    except ValueError as exc:
        form = "the id of an event, such as 4711.42" if agent_id is None else "a sequence, such as 42"
        raise InvalidRequest(f"{field} must be {form}, or '{OLDEST}'.", field=field) from exc


ROUTES = [follow_events, follow_events_of_agent]
