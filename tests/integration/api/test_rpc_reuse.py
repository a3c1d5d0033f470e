"""Kept connections to agents: no caller receives bytes that belong to the call of another one."""

import asyncio
import io
import socketserver
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import pytest
import pytest_asyncio
import uvloop
from multidict import CIMultiDict

from api.gateway.upstream import AgentProtocolError, Call, call_agent, open_upstream
from services.connections import REST_SECONDS, CleanConnector
from services.settings import Settings
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve

CALLERS = ("bot", "other")
CALLS = 100
MIB = 1024 * 1024
AGAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nanother"
STRAYS = {
    "a second answer": AGAIN,
    "an empty line": b"\r\n",
    "half a status line": b"HTTP/1.1 20",
    "half a head": b"HTTP/1.1 200 OK\r\nX-Half: ",
    "a head without its body": b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
    "an interim answer": b"HTTP/1.1 102 Processing\r\n\r\n",
}


class RawPod(socketserver.ThreadingTCPServer):
    """A pod in threads of its own, whose answers contain the body of their call."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *, with_answer: bytes = b"", after_answer: bytes = b"") -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.with_answer, self.after_answer = with_answer, after_answer
        self.connections: list[_Connection] = []
        self.answered = 0

    def handle_error(self, *_: object) -> None:
        """Print nothing: the gateway closes connections whenever it likes."""

    @property
    def url(self) -> str:
        """The address."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"


class _Connection(socketserver.StreamRequestHandler):
    server: RawPod

    def handle(self) -> None:
        """Answer until the client closes the connection."""
        pod = self.server
        pod.connections.append(self)
        while self.rfile.readline():
            headers = dict(iter(lambda: self.rfile.readline().lower().strip().partition(b": ")[::2], (b"", b"")))
            body = self.rfile.read(int(headers.get(b"content-length", b"0")))
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.send(head + body + pod.with_answer)
            self.send(pod.after_answer)
            pod.answered += 1

    def send(self, data: bytes) -> None:
        """Send all data; returns at once if the client has closed the connection."""
        try:
            self.connection.sendall(data)
        except OSError:
            self.close_connection = True


@contextmanager
def a_raw_pod(**sends: bytes) -> Iterator[RawPod]:
    """A running pod."""
    with RawPod(**sends) as pod:
        thread = threading.Thread(target=pod.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield pod
        finally:
            pod.shutdown()
            thread.join()


async def call_in_turns(api: Api, pod: RawPod, calls: int = CALLS) -> None:
    """Two callers call in turns; each must receive its own body. A call starts after the pod has sent everything."""
    before = pod.answered
    for number in range(calls):
        body = f"call {number} of {CALLERS[number % 2]}".encode()
        answer = await api.call("POST", "/agents/name/bot/rpc", data=body, headers={"x-caller": CALLERS[number % 2]})
        assert (answer.status, answer.body) == (200, body)
        await answered(pod, before + number + 1)
        await rest()


async def answered(pod: RawPod, calls: int) -> None:
    """Wait until the pod has sent everything in answer to this many calls: a caller has its answer before that."""
    async with asyncio.timeout(10):
        while pod.answered < calls:
            await asyncio.sleep(0.001)


@pytest.fixture
def always_trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget at once that an agent has sent unexpected bytes, so that each connection is checked alone."""
    monkeypatch.setattr("services.connections.DISTRUSTED_SECONDS", 0.0)


async def rest() -> None:
    """Wait until a connection may be used again."""
    await asyncio.sleep(5 * REST_SECONDS)


@pytest.mark.usefixtures("always_trusting")
@pytest.mark.parametrize("stray", STRAYS.values(), ids=STRAYS)
@pytest.mark.parametrize("sent", ["with_answer", "after_answer"])
async def test_unexpected_bytes_reach_nobody(api: Api, sent: str, stray: bytes) -> None:
    """Sent in one piece with the answer, or after it."""
    with a_raw_pod(**{sent: stray}) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        await call_in_turns(api, pod)


async def test_an_agent_that_sent_unexpected_bytes_gets_no_second_chance(serve: Serve) -> None:
    """Its connections are not reused for a time, while those of an agent without faults are."""
    api = await serve()
    with a_raw_pod() as clean:
        await api.register("bot", "v1", acp_url=clean.url)
        await call_in_turns(api, clean, 20)
        assert len(clean.connections) < 10
    with a_raw_pod(after_answer=AGAIN) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        await call_in_turns(api, pod, 2)
        pod.after_answer = b""
        await call_in_turns(api, pod, 20)
        assert len(pod.connections) >= 20


async def test_an_answer_before_the_end_of_its_call(serve: Serve) -> None:
    """The caller gets it. The rest of the call is dropped with its connection: the agent may never take it."""
    api = await serve(rpc_max_bytes=32 * MIB)
    connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append((reader, writer))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\n\r\ntoo much")

    body = b"x" * 24 * MIB
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as pod, asyncio.timeout(30):
        await api.register("bot", "v1", acp_url="http://{}:{}".format(*pod.sockets[0].getsockname()))
        for calls in (1, 2):
            refused = await api.call("POST", "/agents/name/bot/rpc", data=io.BytesIO(body))
            assert (refused.status, refused.body) == (413, b"too much")
            await rest()
            assert len(connections) == calls
        for reader, writer in connections:
            size = 0
            with suppress(ConnectionResetError):
                while piece := await reader.read(MIB):
                    size += len(piece)
            assert size < len(body)
            writer.close()


async def test_what_no_header_can_contain_is_not_sent(upstream: CleanConnector, settings: Settings) -> None:
    """Whatever server has parsed the caller's request: a line break would begin another header, or another call."""
    with a_raw_pod() as pod:
        for value in ("a\r\nx-more: b", "a\nb", "a\rb", "a\0b"):
            call = Call("POST", f"{pod.url}/", b"", CIMultiDict({"x-given": value}), b"")
            with pytest.raises(AgentProtocolError):
                await call_agent(upstream, call, settings, 5)
        assert await called(upstream, settings, pod, b"complete") == b"complete"
        await answered(pod, 1)
        assert pod.answered == 1


@pytest_asyncio.fixture
async def upstream(settings: Settings) -> AsyncIterator[CleanConnector]:
    """The gateway's connections to agents."""
    async with open_upstream(settings) as upstream:
        yield upstream


async def called(upstream: CleanConnector, settings: Settings, pod: RawPod, body: bytes) -> bytes:
    """The body of the answer to a call with this body."""
    answer = await call_agent(upstream, Call("POST", f"{pod.url}/", b"", CIMultiDict(), body), settings, 5)
    try:
        return await answer.content.read()
    finally:
        answer.close()


async def reused_in_the_same_turn(upstream: CleanConnector, settings: Settings, stray: bytes) -> tuple[bytes, int]:
    """The body of a call that starts right after `stray` was sent, before the event loop can read it."""
    with a_raw_pod() as pod:
        for _ in range(3):
            assert await called(upstream, settings, pod, b"first") == b"first"
            await rest()
        [connection] = pod.connections
        connection.send(stray)
        return await called(upstream, settings, pod, b"second"), len(pod.connections)


@pytest.mark.parametrize("stray", [*STRAYS.values(), b"x"], ids=[*STRAYS, "one letter"])
async def test_bytes_that_arrive_just_before_the_reuse(
    upstream: CleanConnector, settings: Settings, stray: bytes
) -> None:
    """The socket is checked, since the event loop has not read them yet."""
    assert await reused_in_the_same_turn(upstream, settings, stray) == (b"second", 2)


def test_bytes_that_arrive_just_before_the_reuse_under_uvloop(settings: Settings) -> None:
    """Its transports are checked in the same way."""

    async def check() -> None:
        async with open_upstream(settings) as upstream:
            assert await reused_in_the_same_turn(upstream, settings, AGAIN) == (b"second", 2)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(check())
