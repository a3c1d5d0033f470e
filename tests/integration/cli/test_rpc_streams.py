"""`podium rpc` with an agent that streams: each part is printed at once, and the end of the command ends the call."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from tests.integration.api.client import Api
from tests.integration.api.pods import running_pod
from tests.integration.cli.terminal import Terminal

LINES = [b'{"jsonrpc":"2.0","result":1}\n', b'{"jsonrpc":"2.0","result":2}']
EVENTS = [b': hello\n\nevent: message\ndata: {"result": 1}\n\n', b'data: {"result": 2}\n\n']
STREAMS = {"application/x-ndjson": LINES, "text/event-stream": EVENTS}


@dataclass
class Streaming:
    """An agent that sends the second part after `go_on` is set, and sets `left` if the caller disconnects."""

    content_type: str
    head_first: bool = True
    called: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one call."""
        stream = web.StreamResponse(headers={"content-type": self.content_type})
        first, second = STREAMS[self.content_type]
        self.called.set()
        try:
            if self.head_first:
                await stream.prepare(request)
                await stream.write(first)
            await self.go_on.wait()
            await stream.write(second)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return stream


@asynccontextmanager
async def streaming(api: Api, content_type: str, *, head_first: bool = True) -> AsyncIterator[Streaming]:
    """The agent `bot`."""
    agent = Streaming(content_type, head_first)
    async with running_pod(agent.answer) as pod, asyncio.timeout(60):
        await api.register("bot", "v1", acp_url=pod.url)
        yield agent


@pytest.mark.parametrize("content_type", STREAMS)
async def test_streams_into_a_pipe(api: Api, terminal: Terminal, content_type: str) -> None:
    """The bytes are unchanged, and the first part arrives while the agent works on the second."""
    first, second = STREAMS[content_type]
    async with streaming(api, content_type) as agent:
        process = await terminal.started("rpc", "bot", "message/stream")
        assert process.stdout is not None
        assert await process.stdout.readexactly(len(first)) == first
        agent.go_on.set()
        assert await process.stdout.read() == second
        assert await process.wait() == 0


@pytest.mark.parametrize("content_type", STREAMS)
async def test_streams_at_a_terminal(api: Api, terminal: Terminal, content_type: str) -> None:
    """Each part is printed as it arrives; the next prompt starts on a new line."""
    first, second = (piece.decode() for piece in STREAMS[content_type])
    async with streaming(api, content_type) as agent, terminal.typed("rpc", "bot", "message/stream") as command:
        await command.until(first)
        assert second.strip() not in command.shown
        agent.go_on.set()
        assert await command.end() == 0
        assert command.shown.endswith(f"{first}{second.rstrip()}\n" if content_type.endswith("ndjson") else second)


@pytest.mark.parametrize("head_first", [True, False], ids=["in the middle", "before the first byte"])
async def test_ctrl_c_ends_the_call_to_the_agent(api: Api, terminal: Terminal, *, head_first: bool) -> None:
    """The agent sees the disconnect; the exit code is 130."""
    async with streaming(api, "text/event-stream", head_first=head_first) as agent:
        process = await terminal.started("rpc", "bot", "message/stream")
        assert process.stdout is not None
        await agent.called.wait()
        if head_first:
            await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        await agent.left.wait()
        assert await process.wait() == 130


async def test_a_closed_pipe_ends_the_call_to_the_agent(api: Api, terminal: Terminal) -> None:
    """As with `| head -1`: no traceback, and the call ends."""
    async with streaming(api, "application/x-ndjson") as agent:
        process = await asyncio.create_subprocess_shell(
            f"{sys.executable} -m podium rpc bot message/stream | head -1",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=terminal.folder,
            env=terminal._environment({}),
        )
        await agent.called.wait()
        agent.go_on.set()
        out, err = await process.communicate()
        assert (out, err) == (LINES[0], b"")
