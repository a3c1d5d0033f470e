"""Reads new events once per process, for all clients that follow them.

Notifications only shorten the wait for the next poll. While the database cannot be reached, topics keep their
position and clients stay connected; reading continues from there.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.events.topics import Frame, Topic, frame
from services.cancellation import background_task
from services.events.log import Position, make_reader, read_events, read_events_of_agents
from services.events.outbox import WAKE_CHANNEL
from services.storage.database import close_engine

POLL = timedelta(milliseconds=250)
# The pause between two reads, however many notifications arrive: one read covers all commits of the pause.
BATCH_PAUSE = timedelta(milliseconds=10)
RETRY = timedelta(milliseconds=500)
PAGE = 500
# The most that a topic keeps. A client that is further behind reads from the database; a few clients at a time may.
ALL_BYTES = 4 * 1024 * 1024
AGENT_BYTES = 64 * 1024
CATCHING_UP = 4

log = structlog.get_logger(__name__)


class FanOut:
    """Reads new events for all topics that have clients, on one dedicated connection."""

    def __init__(self, engine: AsyncEngine) -> None:
        """`engine` connects when the first client follows a topic."""
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._topics: dict[UUID | None, Topic] = {}
        self._wanted = asyncio.Event()
        self._woken = asyncio.Event()
        self.ended = False
        self.catching_up = asyncio.Semaphore(CATCHING_UP)

    @property
    def clients(self) -> int:
        """How many clients follow a topic now."""
        return sum(topic.clients for topic in self._topics.values())

    @contextmanager
    def follow(self, agent_id: UUID | None, now: Position) -> Iterator[Topic]:
        """The topic of this agent, or of all events, kept up to date while inside.

        It starts at `now` if it has no other clients.
        """
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
        """End the streams of all clients, because the process stops."""
        self.ended = True
        for topic in self._topics.values():
            topic.wake()

    async def run(self) -> None:
        """Read events until cancelled; reconnect after every error."""
        while True:
            await self._wanted.wait()
            try:
                async with self._engine.connect() as connection:
                    await make_reader(connection)
                    await self._listen(connection)
                    await self._read(connection)
            except Exception as error:  # noqa: BLE001 - after any error every topic still has its position
                log.warning(
                    "Reading events failed; retrying. Streams stay open.",
                    action="events.disconnected",
                    error=f"{type(error).__name__}: {error}"[:300],
                )
            await asyncio.sleep(RETRY.total_seconds())

    async def _listen(self, connection: AsyncConnection) -> None:
        """Have notifications wake the reader; they arrive on the same session."""
        driver = (await connection.get_raw_connection()).driver_connection
        if driver is None:
            raise ConnectionError("The database session is closed.")
        await driver.add_listener(WAKE_CHANNEL, lambda *_: self._woken.set())

    async def _read(self, connection: AsyncConnection) -> None:
        """Read until the connection fails; wait while no topic has clients."""
        while True:
            if not self._topics:
                self._wanted.clear()
                await self._wanted.wait()
            self._woken.clear()
            more = await self._read_all(connection)
            more = await self._read_agents(connection) or more
            if not more:
                await asyncio.sleep(BATCH_PAUSE.total_seconds())
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL.total_seconds()):
                        await self._woken.wait()

    async def _read_all(self, connection: AsyncConnection) -> bool:
        """Read one page for the topic of all events; whether there is more to read."""
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
        """Read one page for the topics of single agents; whether there is more to read."""
        topics = {agent_id: topic for agent_id, topic in self._topics.items() if agent_id is not None}
        if not topics:
            return False
        seen = {agent_id: topic.position[0] for agent_id, topic in topics.items()}
        rows = await read_events_of_agents(connection, seen, PAGE)
        frames_by_agent: dict[UUID, list[Frame]] = {}
        for row in rows:
            frames_by_agent.setdefault(row.agent_id, []).append(frame(row, row.agent_id))
        for agent_id, frames in frames_by_agent.items():
            topic = topics[agent_id]
            # A gap before the first frame: retention removed events before this process read them.
            if frames[0].position[0] != topic.position[0] + 1:
                topic.restart((frames[0].position[0] - 1,))
            topic.add(frames, frames[-1].position)
        return len(rows) == PAGE


@asynccontextmanager
async def open_fan_out(engine: AsyncEngine) -> AsyncGenerator[FanOut, None]:
    """A fan-out that reads events while inside. `engine` must be used for nothing else; it is closed on exit."""
    fan_out = FanOut(engine)
    try:
        async with background_task(fan_out.run(), name="events"):
            yield fan_out
    finally:
        await close_engine(engine)
