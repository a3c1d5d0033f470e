"""One client's stream of Server-Sent Events, from its cursor until it disconnects.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import structlog
from litestar.enums import ScopeType
from litestar.types import Receive, Scope, Send

from api.events.fanout import RETRY
from api.events.topics import Step, Topic, frame
from api.http.request_body import ClientDisconnected, while_connected
from api.resources import Resources
from services.domain.identity import EVERYBODY, Identity
from services.errors import PodiumError, Unavailable
from services.events.log import EventsRemoved, Position, cursor_of, read_events
from services.storage.database import in_transaction

MEDIA_TYPE = "text/event-stream"
RECONNECT_MILLISECONDS = 1000
# Events per read and per write.
PAGE = 100
HEADERS = [
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    # Proxies such as nginx must not buffer events.
    (b"x-accel-buffering", b"no"),
]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Subscription:
    """Which events a client wants: of which agent (None: of all), after which position, of which types (None: of all).

    Of all agents, a client gets the events of those that its identity sees.
    `now` is the position of the newest event at the start; without `follow` the stream ends there.
    """

    agent_id: UUID | None
    start: Position
    now: Position
    types: frozenset[str] | None
    follow: bool
    identity: Identity = EVERYBODY
    identify: Callable[[], Awaitable[Identity]] | None = None
    """Finds the identity anew, and raises if its key is not valid any more; None if it cannot end."""


class EventStream:
    """The stream of one client: an ASGI application that a route handler returns."""

    def __init__(self, resources: Resources, subscription: Subscription) -> None:
        self._resources = resources
        self._subscription = subscription
        self._position = subscription.start
        self._sent_position = subscription.start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client disconnects, the process stops, or the subscription is complete."""
        assert scope["type"] == ScopeType.HTTP
        with suppress(ClientDisconnected):
            await while_connected(self._send(send), scope, receive)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        # Send the cursor at once: a client that disconnects before the first event can resume from it.
        await _write(send, f"retry: {RECONNECT_MILLISECONDS}\nid: {cursor_of(self._position)}\n\n".encode())
        with (
            self._resources.events.follow(self._subscription.agent_id, self._subscription.now) as topic,
            # The stream ends; the client reconnects and gets the error as a status.
            suppress(PodiumError),
        ):
            await self._follow(topic, send)
        await _write(send, b"", more=False)

    async def _follow(self, topic: Topic, send: Send) -> None:
        """Send existing events, then new ones; send a heartbeat when there are none for the heartbeat interval."""
        loop = asyncio.get_running_loop()
        interval = self._resources.settings.sse_heartbeat.total_seconds()
        due = check_at = loop.time() + interval
        while not self._is_over():
            if loop.time() >= check_at:
                await self._check_key()
                check_at = loop.time() + interval
            changed = topic.changed
            step = topic.after(self._position, PAGE) or await self._read_from_database()
            content = self._advance(step) if step else b""
            if not content and loop.time() >= due:
                content = self._heartbeat()
            if content:
                await _write(send, content)
                due = loop.time() + interval
            elif not (self._is_over() or (step and step.frames)):
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due if step else min(due, loop.time() + RETRY.total_seconds())):
                        await changed.wait()

    async def _check_key(self) -> None:
        """Raise `PodiumError` if the client's key is not valid any more. While keys cannot be read, it still is."""
        if self._subscription.identify is not None:
            with suppress(Unavailable):
                await self._subscription.identify()

    def _is_over(self) -> bool:
        subscription = self._subscription
        return self._resources.events.ended or not (subscription.follow or self._position < subscription.now)

    def _advance(self, step: Step) -> bytes:
        """Move to the end of the step; the events of it that the client wants."""
        types, identity = self._subscription.types, self._subscription.identity
        wanted = [
            each for each in step.frames if (types is None or each.type in types) and identity.sees(each.agent_name)
        ]
        self._position = step.reached
        if wanted:
            self._sent_position = wanted[-1].position
        return b"".join(each.content for each in wanted)

    def _heartbeat(self) -> bytes:
        """A comment, with the cursor if it has moved past events that the client does not want."""
        moved = f"id: {cursor_of(self._position)}\n" if self._sent_position != self._position else ""
        self._sent_position = self._position
        return f": heartbeat\n{moved}\n".encode()

    async def _read_from_database(self) -> Step | None:
        """Events older than those in the topic; None while the database cannot be reached. Raises `EventsRemoved`."""
        resources, agent_id, position = self._resources, self._subscription.agent_id, self._position
        try:
            async with resources.events.catching_up:
                found = await in_transaction(
                    resources.reads, lambda session: read_events(session, agent_id, position, PAGE)
                )
        except Unavailable:
            return None
        if found.removed > position:
            log.info("A slow stream ends: retention removed events that it had not read.", action="events.removed")
            raise EventsRemoved
        return Step([frame(row, agent_id) for row in found.rows], found.reached)


async def _write(send: Send, content: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": more})
