"""What clients follow: the events of one agent, or all events, rendered once for everybody."""

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
    """One event as it goes to clients."""

    position: Position
    type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """What comes next for a client, and where it stands after that."""

    frames: Sequence[Frame]
    reached: Position


def frame(row: EventRow, agent_id: UUID | None) -> Frame:
    """The event as a Server-Sent Event; its data is byte for byte what consumers get from the broker."""
    position = position_of(row, agent_id)
    data = envelope(row).model_dump_json(exclude_none=True)
    return Frame(position, row.type, f"id: {cursor_of(position)}\nevent: {row.type}\ndata: {data}\n\n".encode())


class Topic:
    """The events of one agent, or all events: the recent ones are kept, up to where this process has read.

    A client holds nothing but its position in here, so that a slow one costs no memory and holds nobody up.
    """

    def __init__(self, position: Position, most_bytes: int) -> None:
        self.position = position
        self.clients = 0
        self.changed = asyncio.Event()
        self._kept_after = position
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._most_bytes = most_bytes

    def add(self, frames: Sequence[Frame], reached: Position) -> None:
        """Take in what comes next, and wake all clients if that is anything."""
        self._frames.extend(frames)
        self._bytes += sum(len(each.content) for each in frames)
        while self._bytes > self._most_bytes:
            oldest = self._frames.popleft()
            self._kept_after = oldest.position
            self._bytes -= len(oldest.content)
        self.position = max(reached, self.position)
        if frames:
            self.wake()

    def restart(self, position: Position) -> None:
        """Keep nothing before this: some of it was removed before it was read."""
        self._frames.clear()
        self._bytes = 0
        self.position = self._kept_after = position
        self.wake()

    def wake(self) -> None:
        """Have all clients look."""
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, position: Position, limit: int) -> Step | None:
        """At most so many events behind this position; None if it lies before what is kept."""
        if position < self._kept_after:
            return None
        newer = list(takewhile(lambda each: each.position > position, reversed(self._frames)))
        frames = list(islice(reversed(newer), limit))
        whole = len(frames) == len(newer)
        return Step(frames, max(position, self.position) if whole else frames[-1].position)
