"""Receivers of webhooks: real HTTP servers that verify and record what they get."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic_core import from_json

from tests.support.waiting import eventually

Answer = Callable[["Received"], int | web.StreamResponse]


@dataclass(frozen=True)
class Received:
    """One request."""

    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        """The CloudEvent."""
        event: dict[str, Any] = from_json(self.body)
        return event

    @property
    def agent(self) -> str:
        """The name of its agent."""
        return str(self.event["agentname"])

    @property
    def sequence(self) -> int:
        """Its sequence within the agent."""
        return int(self.event["sequence"])


@dataclass
class Receiver:
    """A running receiver. `answer` gives the status or the response for each request; `hold` keeps agents waiting."""

    url: str = ""
    answer: Answer = lambda _: 200
    seen: list[Received] = field(default_factory=list)
    accepted: list[Received] = field(default_factory=list)
    held: dict[str, asyncio.Event] = field(default_factory=dict)

    def hold(self, agent: str) -> asyncio.Event:
        """Answer events of this agent only after the event is set."""
        return self.held.setdefault(agent, asyncio.Event())

    def sequences(self, agent: str) -> list[int]:
        """The sequences that were accepted, in order."""
        return [each.sequence for each in self.accepted if each.agent == agent]

    async def until(self, agent: str, sequence: int, *, seconds: float = 20) -> None:
        """Return once this event was accepted."""

        async def there() -> bool:
            return sequence in self.sequences(agent)

        await eventually(there, f"{agent} {sequence} accepted, not only {self.sequences(agent)}", seconds=seconds)

    async def until_seen(self, count: int, agent: str | None = None, *, seconds: float = 20) -> list[Received]:
        """The requests, of one agent or all, once there are this many."""

        async def there() -> bool:
            return len(self._of(agent)) >= count

        await eventually(there, f"{count} requests", seconds=seconds)
        return self._of(agent)

    def _of(self, agent: str | None) -> list[Received]:
        return [each for each in self.seen if agent in {None, each.agent}]


@asynccontextmanager
async def running_receiver(answer: Answer = lambda _: 200) -> AsyncIterator[Receiver]:
    """A receiver on a free port of this machine."""
    receiver = Receiver(answer=answer)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        received = Received({name.lower(): value for name, value in request.headers.items()}, await request.read())
        receiver.seen.append(received)
        if received.agent in receiver.held:
            await receiver.held[received.agent].wait()
        answered = receiver.answer(received)
        if isinstance(answered, web.StreamResponse):
            return answered
        if 200 <= answered < 300:
            receiver.accepted.append(received)
        return web.Response(status=answered, text=f"status {answered}")

    runner = web.ServerRunner(web.Server(handle, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    receiver.url = f"http://{host}:{port}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()
