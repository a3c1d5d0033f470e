"""Tells open pages that what they show has changed. The page then reads itself again; no content travels here.

Pages of agents follow the same topics as event streams, so an open page costs a heartbeat while nothing changes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from litestar import get
from litestar.enums import ScopeType
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Receive, Scope, Send

from api.console.page import OnPage
from api.events.stream import HEADERS, PAGE
from api.events.topics import Step, Topic, frame
from api.http.parameters import agent_uuid
from api.http.request_body import ClientDisconnected, while_connected
from api.resources import Resources
from services.domain.identity import Identity
from services.errors import InvalidRequest, Unavailable
from services.events.log import Position, cursor_of, origin, parse_cursor, read_events
from services.storage.database import in_transaction

# However many changes there are, a page reads itself again at most this often.
PAUSE_SECONDS = 1.0
RECONNECT_MILLISECONDS = 2000
# So many pages of events are searched for one that a visitor sees; then their page reads itself again all the same.
SEARCHED_PAGES = 10


@dataclass(slots=True)
class Source:
    """Where a page's changes come from: `waited` is set by the next one, `moved` says whether there was one."""

    waited: Callable[[], asyncio.Event]
    moved: Callable[[], Awaitable[bool]]
    cursor: Callable[[], str]


@dataclass(slots=True)
class _Followed:
    """A page's position in a topic."""

    resources: Resources
    topic: Topic
    agent_id: UUID | None
    identity: Identity
    position: Position

    async def moved(self) -> bool:
        """Whether there are events after the position of agents that the visitor sees; it then moves past them.

        Also if nobody knows: events were removed by retention, or there are too many to search.
        """
        target = self.topic.position
        everything = self.identity.agents is None or self.agent_id is not None
        moved, pages = False, 0
        while self.position < target and not moved:
            step = self.topic.after(self.position, PAGE)
            if step is None and not everything and pages < SEARCHED_PAGES:
                step, pages = await self._read(), pages + 1
            if step is None:
                moved = True
                break
            moved = any(everything or self.identity.sees(each.agent_name) for each in step.frames)
            if step.reached <= self.position:
                break
            self.position = step.reached
        self.position = max(self.position, target)
        return moved

    async def _read(self) -> Step | None:
        """Events that are no longer in the topic; None if retention has removed some of them."""
        position = self.position
        found = await in_transaction(
            self.resources.reads, lambda session: read_events(session, self.agent_id, position, PAGE)
        )
        if found.removed > position:
            return None
        return Step([frame(row, self.agent_id) for row in found.rows], found.reached)


@dataclass(slots=True)
class LiveStream:
    """The stream of one page: an ASGI application that a route handler returns."""

    resources: Resources
    agent_id: UUID | None
    start: Position | None
    """After which event; None for a page that follows the watch."""
    now: Position
    identity: Identity
    identify: Callable[[], Awaitable[Identity | None]]
    """The visitor anew: the stream of a key that is revoked ends within the heartbeat interval."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a word per change until the browser leaves or the process stops."""
        assert scope["type"] == ScopeType.HTTP
        with suppress(ClientDisconnected):
            await while_connected(self._send(send), scope, receive)

    @contextmanager
    def _calls(self) -> Iterator[Callable[[], bool]]:
        """Says whether counts of calls on the page have changed since it was asked last. They wait for a heartbeat."""
        watch = self.resources.call_watch
        seen = watch.version

        def changed() -> bool:
            nonlocal seen
            before, seen = seen, watch.version
            return watch.has_changed(before, self.agent_id, self.identity)

        if self.start is None:
            yield lambda: False
            return
        with watch.follow():
            yield changed

    @contextmanager
    def _source(self) -> Iterator[Source]:
        resources = self.resources
        if self.start is None:
            with resources.watch.follow(self.identity) as watch:
                seen = watch.version

                async def moved() -> bool:
                    nonlocal seen
                    seen, before = watch.version, seen
                    return seen != before

                yield Source(lambda: watch.changed, moved, lambda: "0")
            return
        with resources.events.follow(self.agent_id, self.now) as topic:
            followed = _Followed(resources, topic, self.agent_id, self.identity, self.start)
            yield Source(lambda: topic.changed, followed.moved, lambda: cursor_of(followed.position))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        with self._source() as source, self._calls() as have_calls_changed:
            await _write(send, f"retry: {RECONNECT_MILLISECONDS}\nid: {source.cursor()}\n\n")
            loop = asyncio.get_running_loop()
            interval = self.resources.settings.sse_heartbeat.total_seconds()
            due = check_at = loop.time() + interval
            while not self.resources.events.ended:
                if loop.time() >= check_at:
                    if await self._is_gone():
                        break
                    check_at = loop.time() + interval
                waited = source.waited()
                if await source.moved():
                    await _write(send, _change(source.cursor()))
                    due = loop.time() + interval
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                if loop.time() >= due:
                    await _write(send, _change(source.cursor()) if have_calls_changed() else ": heartbeat\n\n")
                    due = loop.time() + interval
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(due, check_at)):
                        await waited.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _is_gone(self) -> bool:
        """Whether the visitor's key or token is not valid any more. While keys cannot be read, it still is."""
        try:
            return await self.identify() is None
        except Unavailable:
            return False


def _change(cursor: str) -> str:
    return f"id: {cursor}\nevent: change\ndata: {cursor}\n\n"


async def _write(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


@get("/console/live", include_in_schema=False)
async def follow_changes(
    page: OnPage,
    since: Annotated[str | None, QueryParameter()] = None,
    agent: Annotated[str | None, QueryParameter()] = None,
    watch: Annotated[str | None, QueryParameter()] = None,
) -> ASGIApp:
    """A word for each change after the event `since`: of one agent, of all agents, or of messages (`watch`)."""
    agent_id = None if agent is None else agent_uuid(agent)
    if agent_id is not None:
        page.require_agent((await page.resources.agents.by_id(agent_id)).agent.name)
    if watch is not None:
        return LiveStream(page.resources, None, None, origin(None), page.identity, page.identify)
    cursor = page.request.headers.get("last-event-id") or since or "0"
    try:
        start = parse_cursor(cursor, agent_id)
    except ValueError as exc:
        raise InvalidRequest("since must be a cursor.", field="since") from exc
    found = await in_transaction(
        page.resources.reads, lambda session: read_events(session, agent_id, origin(agent_id), limit=0)
    )
    return LiveStream(page.resources, agent_id, min(start, found.now), found.now, page.identity, page.identify)


ROUTES = [follow_changes]
