"""Topics of events, of one agent or of all agents: each event is rendered once for all clients."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from uuid import UUID

from services.events.log import EventRow, Position, cursor_of, position_of
from services.events.outbox import envelope


@dataclass(frozen=True, slots=True)
class Frame:
    """One event as it is sent to clients."""

    position: Position
    type: str
    agent_name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """The next events for a client, and its position after them."""

    frames: Sequence[Frame]
    reached: Position


def frame(row: EventRow, agent_id: UUID | None) -> Frame:
    """The event as a Server-Sent Event; its data is byte for byte the message that the broker delivers."""
    position = position_of(row, agent_id)
    data = envelope(row).model_dump_json(exclude_none=True)
    content = f"id: {cursor_of(position)}\nevent: {row.type}\ndata: {data}\n\n".encode()
    return Frame(position, row.type, row.agent_name, content)


class Topic:
    """The recent events of one agent, or of all agents, up to the position that this process has read.

    Each client keeps only a position. A slow client therefore costs no memory and does not delay the others.
    """

    def __init__(self, position: Position, max_bytes: int) -> None:
        self.position = position
        self.clients = 0
        self.changed = asyncio.Event()
        self._kept_after = position
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes

    def add(self, frames: Sequence[Frame], reached: Position) -> None:
        """Append the next events, and wake all clients if there are any."""
        self._frames.extend(frames)
        self._bytes += sum(len(each.content) for each in frames)
        while self._bytes > self._max_bytes:
            oldest = self._frames.popleft()
            self._kept_after = oldest.position
            self._bytes -= len(oldest.content)
        self.position = max(reached, self.position)
        if frames:
            self.wake()

    def restart(self, position: Position) -> None:
        """Start again at `position`: retention removed events before this process read them."""
        self._frames.clear()
        self._bytes = 0
        self.position = self._kept_after = position
        self.wake()

    def wake(self) -> None:
        """Wake all clients."""
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, position: Position, limit: int) -> Step | None:
        """At most `limit` events after `position`; None if `position` is before the oldest event in memory."""
        if position < self._kept_after:
            return None
        newer = list(takewhile(lambda each: each.position > position, reversed(self._frames)))
        frames = list(islice(reversed(newer), limit))
        complete = len(frames) == len(newer)
        return Step(frames, max(position, self.position) if complete else frames[-1].position)
