"""One client's stream of events: Server-Sent Events for as long as it stays, from the cursor that it names.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import structlog
from litestar.types import Receive, Scope, Send

from api.events.fanout import RETRY
from api.events.topics import Step, Topic, frame
from api.resources import Resources
from services.errors import Unavailable
from services.events.log import EventsRemoved, Position, cursor_of, read_events
from services.storage.database import in_transaction

MEDIA_TYPE = "text/event-stream"
RECONNECT_MILLISECONDS = 1000
# Events read or written at a time.
PAGE = 100
HEADERS = [
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    # Proxies must not collect what is to be seen at once.
    (b"x-accel-buffering", b"no"),
]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a client wants: whose events, behind which position, of which types. No agent stands for all."""

    agent_id: UUID | None
    start: Position
    now: Position
    types: frozenset[str]
    follow: bool


class EventStream:
    """The stream: an ASGI application that a route handler returns."""

    def __init__(self, resources: Resources, asked: Subscription) -> None:
        self._resources = resources
        self._asked = asked
        self._position = asked.start
        self._told = asked.start

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client leaves, the process stops, or all are sent and no more are wanted."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.wait((sending, leaving))
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        # The cursor goes out at once: who leaves before the first event can go on from here.
        await _write(send, f"retry: {RECONNECT_MILLISECONDS}\nid: {cursor_of(self._position)}\n\n".encode())
        with (
            self._resources.events.follow(self._asked.agent_id, self._asked.now) as topic,
            suppress(EventsRemoved),  # while it was read: the client comes back and is told
        ):
            await self._follow(topic, send)
        await _write(send, b"", more=False)

    async def _follow(self, topic: Topic, send: Send) -> None:
        """Send what there is and what comes; a sign of life where that is nothing."""
        loop = asyncio.get_running_loop()
        silence = self._resources.settings.sse_heartbeat.total_seconds()
        due = loop.time() + silence
        while not self._is_over():
            changed = topic.changed
            step = topic.after(self._position, PAGE) or await self._read_behind()
            content = self._taken(step) if step else b""
            if not content and loop.time() >= due:
                content = self._heartbeat()
            if content:
                await _write(send, content)
                due = loop.time() + silence
            elif not (self._is_over() or (step and step.frames)):
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due if step else min(due, loop.time() + RETRY.total_seconds())):
                        await changed.wait()

    def _is_over(self) -> bool:
        return self._resources.events.ended or not (self._asked.follow or self._position < self._asked.now)

    def _taken(self, step: Step) -> bytes:
        """What this client wants of a step; it stands behind it now."""
        wanted = [each for each in step.frames if each.type in self._asked.types]
        self._position = step.reached
        if wanted:
            self._told = wanted[-1].position
        return b"".join(each.content for each in wanted)

    def _heartbeat(self) -> bytes:
        """A comment; with the cursor, if that has moved past events that this client does not want."""
        moved = f"id: {cursor_of(self._position)}\n" if self._told != self._position else ""
        self._told = self._position
        return f": heartbeat\n{moved}\n".encode()

    async def _read_behind(self) -> Step | None:
        """What the topic no longer keeps; None while the database is away. Raises `EventsRemoved`."""
        resources, agent_id, position = self._resources, self._asked.agent_id, self._position
        try:
            async with resources.events.catching_up:
                found = await in_transaction(
                    resources.reads, lambda session: read_events(session, agent_id, position, PAGE)
                )
        except Unavailable:
            return None
        if found.removed > position:
            log.info("A slow stream ends: what it had not read was removed.", action="events.removed")
            raise EventsRemoved
        return Step([frame(row, agent_id) for row in found.rows], found.reached)


async def _write(send: Send, content: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": more})


async def _left(receive: Receive) -> None:
    """Returns once the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
