"""Clients of event streams that parse raw Server-Sent Events."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlencode

import aiohttp
from pydantic_core import from_json, to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from yarl import URL

from services.storage import statements as sql
from tests.integration.api.client import Api
from tests.support.waiting import eventually

_NUMBERS = count(1)
_NEXT = text("UPDATE agents SET event_seq = event_seq + 1 WHERE name = :name RETURNING id, event_seq")


@dataclass(frozen=True)
class Block:
    """One block of a stream, between two empty lines."""

    fields: dict[str, str]
    comments: tuple[str, ...]
    at: float

    @property
    def event(self) -> dict[str, Any]:
        """The CloudEvent."""
        event: dict[str, Any] = from_json(self.fields["data"])
        return event


@dataclass
class Listener:
    """A client that keeps all blocks that it receives."""

    response: aiohttp.ClientResponse
    blocks: list[Block] = field(default_factory=list)
    ended: bool = False

    @property
    def events(self) -> list[Block]:
        """The blocks that are events."""
        return [block for block in self.blocks if "data" in block.fields]

    @property
    def cursor(self) -> str:
        """The last id, which a browser would send as Last-Event-ID."""
        return [block.fields["id"] for block in self.blocks if "id" in block.fields][-1]

    @property
    def sequences(self) -> list[int]:
        """In the order of the events."""
        return [int(block.event["sequence"]) for block in self.events]

    @property
    def subjects(self) -> list[str]:
        """In the order of the events."""
        return [block.event["subject"] for block in self.events]

    async def until(self, count: int, *, seconds: float = 20) -> list[Block]:
        """Wait for that many events; returns all of them."""

        async def enough() -> bool:
            return len(self.events) >= count

        await eventually(enough, f"{count} events, after {self.subjects}", seconds=seconds)
        return self.events

    async def until_subject(self, subject: str, *, seconds: float = 20) -> None:
        """Wait for an event with this subject."""

        async def there() -> bool:
            return subject in self.subjects

        await eventually(there, f"an event of {subject}", seconds=seconds)

    async def until_end(self) -> None:
        """Wait for the regular end of the stream."""

        async def ended() -> bool:
            return self.ended

        await eventually(ended, "the stream's end")

    async def read(self) -> None:
        """Read blocks until the stream ends."""
        loop = asyncio.get_running_loop()
        rest = b""
        async for chunk in self.response.content.iter_any():
            *blocks, rest = (rest + chunk).split(b"\n\n")
            self.blocks += [_parsed(block.decode(), loop.time()) for block in blocks]
        assert rest == b""
        self.ended = True


def _parsed(block: str, at: float) -> Block:
    lines = block.split("\n")
    pairs = [line.partition(": ") for line in lines if not line.startswith(":")]
    return Block({name: value for name, _, value in pairs}, tuple(line for line in lines if line.startswith(":")), at)


@asynccontextmanager
async def listening(
    api: Api, path: str, cursor: str | None = None, *, types: Sequence[str] = (), **query: str
) -> AsyncIterator[Listener]:
    """A client of a stream whose headers have arrived."""
    asked = urlencode([*query.items(), *(("type", each) for each in types)])
    headers = {} if cursor is None else {"last-event-id": cursor}
    target = URL(f"{api.url}{path}{'?' if asked else ''}{asked}", encoded=True)
    async with api.session.get(target, headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as response:
        assert response.status == 200, await response.read()
        listener = Listener(response)
        reading = asyncio.create_task(listener.read())
        try:
            yield listener
        finally:
            reading.cancel()
            await asyncio.wait({reading})


async def write_event(session: AsyncSession, agent_name: str, subject: str, size: int = 0) -> int:
    """Write an event of this agent under its row lock, as every transition does; returns its sequence."""
    agent = (await session.execute(_NEXT, {"name": agent_name})).one()
    event = {
        "event_id": f"00000000-0000-4000-8000-{next(_NUMBERS):012x}",
        "type": "podium.deployment.created.v1",
        "agent_id": agent.id,
        "agent_name": agent_name,
        "subject": subject,
        "sequence": agent.event_seq,
        "generation": 0,
        "payload": {"agent_id": agent.id, "agent_name": agent_name, "filling": "x" * size},
        "traceparent": None,
    }
    rows = {"deployments": "[]", "agents": "[]", "ledger": "[]", "events": to_json([event]).decode()}
    await session.execute(sql.CHANGE_SERVING, rows)
    sequence: int = agent.event_seq
    return sequence
