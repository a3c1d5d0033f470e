"""The gateway behaves the same on uvicorn, which `podium api` uses, and on granian."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter
from uuid import uuid4

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from pydantic import SecretStr

from podium.servers.ports import free_ports
from services.settings import Settings
from tests.conftest import TestServers
from tests.integration.api.pods import Handler, raw_pod, running_pod
from tests.support.databases import a_database
from tests.support.factories import a_body
from tests.support.processes import api_process, environment, program
from tests.support.waiting import eventually

FIRST_BYTE_SECONDS = 0.05
# One of these streams must be this quick: a busy machine delays some, a gateway that buffers delays all.
STREAMS = 20
# More than a server reads ahead of the application, in one piece.
LARGE_BYTES = 1_000_000


@pytest_asyncio.fixture(scope="module", params=["uvicorn", "granian"])
async def url(
    request: pytest.FixtureRequest, servers: TestServers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """The base URL of an API process under one of the servers, with its own database."""
    folder = tmp_path_factory.mktemp(request.param)
    async with a_database(servers.database_url, template) as database:
        settings = Settings(
            database_url=SecretStr(database.render_as_string(hide_password=False)),
            amqp_url=SecretStr(servers.amqp_url),
            secret_key=SecretStr("a test's secret key"),
        )
        running = api_process if request.param == "uvicorn" else granian_process
        async with running(settings, folder) as url:
            yield url


@asynccontextmanager
async def granian_process(settings: Settings, folder: Path) -> AsyncIterator[str]:
    """The base URL of an API under granian."""
    port, log = free_ports(["api"])["api"], folder / "granian.log"
    arguments = f"granian --interface asgi --host 127.0.0.1 --port {port} --factory api.asgi:application"
    async with program(arguments, environment(settings), log) as process:
        url = f"http://127.0.0.1:{port}"

        async def ready() -> bool:
            assert process.code is None, log.read_text()
            with suppress(aiohttp.ClientError):
                async with aiohttp.ClientSession() as client, client.get(f"{url}/health/ready") as response:
                    return response.status == 200
            return False

        await eventually(ready, "granian serves the API")
        yield url


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of that process."""
    async with aiohttp.ClientSession(url) as client:
        yield client


async def register(client: aiohttp.ClientSession, address: str) -> str:
    """Register a new agent with a pod in production; returns the path of its RPC route."""
    name = f"bot-{uuid4()}"
    async with client.post("/agents/register", json=a_body(name, deployment_id=name, acp_url=address)) as response:
        assert response.status == 200
    return f"/agents/name/{name}/rpc"


async def test_calls_pass_and_are_refused(client: aiohttp.ClientSession) -> None:
    """Bodies, repeated headers, methods that are not forwarded, and the gateway's own failures."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(body=bytes(range(256)), status=418)
        response.headers.add("x-many", "one")
        response.headers.add("x-many", "two")
        response.headers.add("x-method", request.method)
        return response

    async with running_pod(answer) as pod:
        path = await register(client, pod.url)
        for method in ("GET", "POST", "DELETE"):
            async with client.request(method, path, data=b"\xff\x00" if method == "POST" else None) as response:
                assert (response.status, await response.read()) == (418, bytes(range(256)))
                assert response.headers.getall("x-many") == ["one", "two"]
                assert response.headers["x-method"] == method
                assert response.headers["x-podium-deployment-id"] == path.split("/")[3]
        assert pod.seen[1].body == b"\xff\x00"
    async with client.put(path) as response:
        assert (response.status, "POST" in response.headers["allow"]) == (405, True)
    async with client.post(path, json={"id": 7}) as response:
        assert (response.status, (await response.json())["id"]) == (502, 7)
    async with client.post(path, data=io.BytesIO(b"x" * (4 * 1024 * 1024 + 1)), expect100=True) as response:
        assert response.status == 413


@pytest.mark.parametrize(
    ("started", "size"),
    [(False, 2), (True, 2), (False, LARGE_BYTES)],
    ids=["before the first byte", "in the middle of a stream", "after a large body"],
)
async def test_a_disconnect_of_the_caller_ends_the_call_to_the_agent(
    url: str, client: aiohttp.ClientSession, *, started: bool, size: int
) -> None:
    """Within a second."""
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def never_ending(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        try:
            if started:
                await response.prepare(request)
                await response.write(b"piece")
            arrived.set()
            await asyncio.sleep(60)
        finally:
            ended.set()
        return response

    async with running_pod(never_ending) as pod, asyncio.timeout(20):
        path = await register(client, pod.url)
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\nExpect: 100-continue\r\n\r\n"
        writer.write(head.encode())
        # The application waits for the body.
        await reader.readuntil(b"100 Continue\r\n\r\n")
        writer.write(b" " * size)
        await arrived.wait()
        if started:
            await reader.readuntil(b"piece")
        assert not ended.is_set()
        writer.close()
        async with asyncio.timeout(1):
            await ended.wait()


async def test_the_first_byte_of_a_stream_is_not_held_back(client: aiohttp.ClientSession) -> None:
    """It arrives within 50 ms after the agent sends it, long before the second byte."""
    sent: list[float] = []
    finish = asyncio.Event()

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        sent.append(perf_counter())
        await response.write(b": first\n\n")
        await finish.wait()
        return response

    async with running_pod(stream) as pod, asyncio.timeout(30):
        path = await register(client, pod.url)
        seconds = []
        for _ in range(STREAMS):
            finish.clear()
            async with client.post(path, json={}) as response:
                assert await response.content.readany() == b": first\n\n"
                seconds.append(perf_counter() - sent[-1])
                finish.set()
    assert min(seconds) < FIRST_BYTE_SECONDS, seconds


async def test_the_head_of_an_answer_does_not_wait_for_its_body(client: aiohttp.ClientSession) -> None:
    """An agent opens a stream of events before there is one."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    async with raw_pod(head, close=False) as pod, asyncio.timeout(10):
        path = await register(client, pod.url)
        async with client.get(path) as response:
            assert response.content_type == "text/event-stream"


def breaking(*, length: bool) -> Handler:
    """A pod that closes the connection in the middle of its answer."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"} if length else {})
        await response.prepare(request)
        await response.write(b"half an answer")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    return answer


@pytest.mark.parametrize("length", [True, False], ids=["known length", "chunked"])
async def test_a_broken_answer_does_not_look_complete(url: str, client: aiohttp.ClientSession, *, length: bool) -> None:
    """The caller sees that the end is missing."""
    async with running_pod(breaking(length=length)) as pod:
        path = await register(client, pod.url)
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode())
        async with asyncio.timeout(10):
            received = await reader.read()
        writer.close()
    assert b"half an answer" in received
    assert not received.endswith(b"0\r\n\r\n")


async def test_an_answer_that_is_not_http(client: aiohttp.ClientSession) -> None:
    """502 with `sent`."""
    async with raw_pod(b"SSH-2.0\r\n\r\n") as pod:
        path = await register(client, pod.url)
        async with client.post(path, json={"id": 1}) as response:
            assert (response.status, response.headers["x-should-retry"]) == (502, "false")
