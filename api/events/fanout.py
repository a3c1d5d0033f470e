"""New events, read once per process, however many clients follow them.

Notifications say when to look, a poll is the truth. While the database is away, topics stay where they are and
clients stay connected; reading goes on where it stopped.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Self
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.events.topics import Frame, Topic, frame
from services.events.log import Position, make_reader, read_events, read_events_of_agents
from services.events.outbox import WAKE_CHANNEL
from services.storage.database import close_engine

POLL = timedelta(milliseconds=250)
# Between two reads, however often somebody notifies: what is committed meanwhile is read together.
BREATH = timedelta(milliseconds=10)
RETRY = timedelta(milliseconds=500)
PAGE = 500
# What a topic keeps, at most: who is further behind reads the database for itself, a few at a time.
ALL_BYTES = 4 * 1024 * 1024
AGENT_BYTES = 64 * 1024
CATCHING_UP = 4

log = structlog.get_logger(__name__)


class FanOut:
    """Reads new events for all topics that somebody follows, on a connection of its own that notifications wake."""

    def __init__(self, engine: AsyncEngine) -> None:
        """`engine` is for this alone; it is connected once somebody follows anything."""
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._topics: dict[UUID | None, Topic] = {}
        self._wanted = asyncio.Event()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.ended = False
        self.catching_up = asyncio.Semaphore(CATCHING_UP)

    @property
    def clients(self) -> int:
        """How many follow something now."""
        return sum(topic.clients for topic in self._topics.values())

    @contextmanager
    def follow(self, agent_id: UUID | None, now: Position) -> Iterator[Topic]:
        """The topic of this agent, or of all events, kept up to date while inside; begins now if nobody follows it."""
        topic = self._topics.get(agent_id)
        if topic is None:
            topic = self._topics[agent_id] = Topic(now, ALL_BYTES if agent_id is None else AGENT_BYTES)
        topic.clients += 1
        self._wanted.set()
        try:
            yield topic
        finally:
            topic.clients -= 1
            if not topic.clients:
                del self._topics[agent_id]

    def end(self) -> None:
        """Have every client's stream end: the process stops."""
        self.ended = True
        for topic in self._topics.values():
            topic.wake()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="events")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await close_engine(self._engine)

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            try:
                async with self._engine.connect() as connection:
                    await make_reader(connection)
                    await self._listen(connection)
                    await self._read(connection)
            except Exception as error:  # noqa: BLE001 - whatever it was, every topic knows where to go on
                log.warning(
                    "Reading events lost the database; trying again, streams stay open.",
                    action="events.disconnected",
                    error=f"{type(error).__name__}: {error}"[:300],
                )
            await asyncio.sleep(RETRY.total_seconds())

    async def _listen(self, connection: AsyncConnection) -> None:
        """Have notifications wake the reading; they come on the same session."""
        driver = (await connection.get_raw_connection()).driver_connection
        if driver is None:
            raise ConnectionError("The database session is gone.")
        await driver.add_listener(WAKE_CHANNEL, lambda *_: self._woken.set())

    async def _read(self, connection: AsyncConnection) -> None:
        """Read for as long as the connection lives; nothing while nobody follows anything."""
        while True:
            if not self._topics:
                self._wanted.clear()
                await self._wanted.wait()
            self._woken.clear()
            more = await self._read_all(connection)
            more = await self._read_agents(connection) or more
            if not more:
                await asyncio.sleep(BREATH.total_seconds())
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL.total_seconds()):
                        await self._woken.wait()

    async def _read_all(self, connection: AsyncConnection) -> bool:
        """Whether there is more to read for those who follow all events."""
        topic = self._topics.get(None)
        if topic is None:
            return False
        found = await read_events(connection, None, topic.position, PAGE)
        if found.removed > topic.position:
            topic.restart(found.removed)
            return True
        topic.add([frame(row, None) for row in found.rows], found.reached)
        return len(found.rows) == PAGE

    async def _read_agents(self, connection: AsyncConnection) -> bool:
        """Whether there is more to read for those who follow single agents."""
        topics = {agent_id: topic for agent_id, topic in self._topics.items() if agent_id is not None}
        if not topics:
            return False
        seen = {agent_id: topic.position[0] for agent_id, topic in topics.items()}
        rows = await read_events_of_agents(connection, seen, PAGE)
        news: dict[UUID, list[Frame]] = {}
        for row in rows:
            topic = topics[row.agent_id]
            news.setdefault(row.agent_id, []).append(frame(row, row.agent_id))
        for agent_id, frames in news.items():
            topic = topics[agent_id]
            if frames[0].position[0] != topic.position[0] + 1:
                topic.restart((frames[0].position[0] - 1,))
            topic.add(frames, frames[-1].position)
        return len(rows) == PAGE
