"""HTTP/1.1 and HTTP/1.0 as other programs speak it: versions, methods, pipelining, upgrades, headers of answers."""

import asyncio

import pytest
from aiohttp import web

from api.http.request_body import HEADERS_MAX_BYTES
from tests.integration.api.client import Api
from tests.integration.api.pods import Pod, pausing, raw_pod, running_pod
from tests.integration.api.raw import connected
from tests.support.waiting import eventually

RPC = "/agents/name/bot/rpc"


def a_request(start: str, *headers: str, body: bytes = b"") -> bytes:
    """A whole request."""
    length = [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([start, "Host: 127.0.0.1", *headers, *length, "", ""]).encode() + body


LIVE = a_request("GET /health/live HTTP/1.1")
CALL = a_request(f"POST {RPC} HTTP/1.1", body=b"{}")


async def test_a_client_of_http_1_0(api: Api) -> None:
    """It gets no chunks: a streamed answer ends with the connection."""
    resume = asyncio.Event()
    resume.set()
    async with running_pod(pausing(b"first ", resume, b"rest")) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        async with connected(api) as connection:
            connection.send(a_request(f"POST {RPC} HTTP/1.0", body=b"{}"))
            answer = await connection.answer(until_end=True)
    assert answer.body == b"first rest"
    assert answer.headers["connection"] == "close"
    assert "transfer-encoding" not in answer.headers


async def test_a_client_of_http_1_0_reads_resources(api: Api) -> None:
    """Answers of a known length are the same."""
    async with connected(api) as connection:
        connection.send(a_request("GET /health/live HTTP/1.0"))
        answer = await connection.answer(until_end=True)
    assert answer.status_line.endswith(" 200 OK")
    assert answer.body == b'{"status":"live"}'
    assert answer.headers["content-length"] == str(len(answer.body))


async def test_not_modified(api: Api) -> None:
    """An agent's 304 has no body, whatever length it announces; the connection stays usable."""
    async with raw_pod(b'HTTP/1.1 304 Not Modified\r\netag: "1"\r\ncontent-length: 1234\r\n\r\n') as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        async with connected(api) as connection:
            connection.send(a_request(f"GET {RPC} HTTP/1.1"))
            head = await connection.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 304 Not Modified\r\n")
            assert b'etag: "1"' in head
            assert b"transfer-encoding" not in head
            connection.send(LIVE)
            assert (await connection.answer()).body == b'{"status":"live"}'


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_head_of_health_routes(api: Api, path: str) -> None:
    """As for GET, without the body: some load balancers check with HEAD."""
    async with connected(api) as connection:
        connection.send(a_request(f"HEAD {path} HTTP/1.1"))
        head = await connection.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"content-type: application/json\r\n" in head
        connection.send(LIVE)
        assert (await connection.answer()).body == b'{"status":"live"}'


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(RPC, {"GET", "POST", "DELETE"}), ("/agents", {"GET"}), ("/agents/register", {"POST"}), ("/events", {"GET"})],
)
async def test_head_of_other_routes(api: Api, pod: Pod, path: str, allowed: set[str]) -> None:
    """405 with the methods that the route accepts, and no body; an agent is not called."""
    await api.register("bot", "v1", acp_url=pod.url)
    answer = await api.call("HEAD", path)
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) - {"OPTIONS"} == allowed
    assert answer.body == b""
    assert not pod.seen


async def test_pipelined_requests(api: Api, pod: Pod) -> None:
    """Of those sent in one piece, the first is answered and the connection closed; the others are not executed."""
    await api.register("bot", "v1", acp_url=pod.url)
    async with connected(api) as connection:
        connection.send(CALL * 50)
        answer = await connection.answer()
        assert answer.status_line == "HTTP/1.1 200 OK"
        assert await connection.ended() == b""
    assert len(pod.seen) == 1


async def test_requests_that_come_early(api: Api) -> None:
    """Requests that arrive while an answer is being sent are served in order, on the same connection."""
    resume = asyncio.Event()
    async with running_pod(pausing(b"first ", resume, b"rest")) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        async with connected(api) as connection:
            connection.send(CALL)
            await connection.reader.readuntil(b"first ")
            connection.send(LIVE[:10])
            await asyncio.sleep(0.1)
            connection.send(LIVE[10:])
            await asyncio.sleep(0.1)
            resume.set()
            await connection.reader.readuntil(b"rest\r\n0\r\n\r\n")
            assert (await connection.answer()).body == b'{"status":"live"}'
            connection.send(LIVE)
            assert (await connection.answer()).body == b'{"status":"live"}'


async def test_too_many_requests_that_come_early(api: Api) -> None:
    """The answer that is due is the last one."""
    resume = asyncio.Event()
    async with running_pod(pausing(b"first ", resume, b"rest")) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        async with connected(api) as connection:
            connection.send(CALL)
            await connection.reader.readuntil(b"first ")
            connection.send(LIVE * (2 * HEADERS_MAX_BYTES // len(LIVE)))
            await asyncio.sleep(0.2)
            resume.set()
            assert await connection.ended() == b"\r\n4\r\nrest\r\n0\r\n\r\n"


async def test_a_pipelining_client_that_disconnects(api: Api) -> None:
    """Its call ends, as that of any other client."""
    left = asyncio.Event()

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        try:
            await asyncio.sleep(60)
        finally:
            left.set()
        return web.Response()

    async with running_pod(answer) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        async with connected(api) as connection:
            connection.send(CALL + LIVE)

            async def called() -> bool:
                return bool(pod.seen)

            await eventually(called, "the agent has the call")
        await asyncio.wait_for(left.wait(), 5)


async def test_garbage_after_a_request(api: Api) -> None:
    """It does not get into the answer that is being sent, but is refused after it."""
    resume = asyncio.Event()
    async with running_pod(pausing(b"first ", resume, b"rest")) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        async with connected(api) as connection:
            connection.send(CALL)
            await connection.reader.readuntil(b"first ")
            connection.send(b"\x00garbage\r\n\r\n")
            await asyncio.sleep(0.1)
            resume.set()
            assert await connection.reader.readuntil(b"0\r\n\r\n") == b"\r\n4\r\nrest\r\n0\r\n\r\n"
            assert (await connection.answer()).status_line == "HTTP/1.1 400 Bad Request"
            assert await connection.ended() == b""


async def test_an_invalid_request(api: Api) -> None:
    """400 with a date, and the connection is closed."""
    async with connected(api) as connection:
        connection.send(b"\x00\r\n\r\n")
        answer = await connection.answer()
        assert answer.status_line == "HTTP/1.1 400 Bad Request"
        assert answer.headers["date"].endswith(" GMT")
        assert await connection.ended() == b""


async def test_an_invalid_chunk(api: Api, pod: Pod) -> None:
    """400, and the agent is not called."""
    await api.register("bot", "v1", acp_url=pod.url)
    async with connected(api) as connection:
        connection.send(a_request(f"POST {RPC} HTTP/1.1", "Transfer-Encoding: chunked") + b"2\r\n{}\r\n")
        await asyncio.sleep(0.1)
        connection.send(b"no length\r\n")
        assert (await connection.answer()).status_line == "HTTP/1.1 400 Bad Request"
        assert await connection.ended() == b""
    assert not pod.seen


@pytest.mark.parametrize("together", [True, False])
async def test_an_upgrade_is_ignored(api: Api, pod: Pod, together: bool) -> None:  # noqa: FBT001 - a case
    """A request that offers another protocol is served with its body, and what follows is no request."""
    await api.register("bot", "v1", acp_url=pod.url)
    offered = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    inner = a_request("DELETE /agents/name/bot HTTP/1.1")
    request = a_request(f"POST {RPC} HTTP/1.1", *offered, body=inner)
    async with connected(api) as connection:
        head, body = request[: -len(inner)], inner
        connection.send(head + body if together else head)
        if not together:
            await asyncio.sleep(0.1)
            connection.send(body)
        assert (await connection.answer()).status_line == "HTTP/1.1 200 OK"
        assert await connection.ended() == b""
    assert pod.seen[0].body == inner
    assert (await api.get("/agents/name/bot")).status == 200


async def test_every_answer_has_a_date(api: Api, pod: Pod) -> None:
    """Podium's own answers too; an agent's date passes."""
    await api.register("bot", "v1", acp_url=pod.url)
    for path in ("/health/live", "/agents", "/nowhere", "/agents/name/nobody/rpc"):
        assert (await api.get(path)).headers["date"].endswith(" GMT")
    assert len((await api.post(RPC, {})).headers.getall("date")) == 1


@pytest.mark.parametrize("own", [b"", b"x-request-id: of-the-agent\r\n"])
async def test_request_id_of_a_forwarded_answer(api: Api, own: bytes) -> None:
    """The id that the caller sent, or that the gateway made: the one in its log, not one of the agent."""
    for given in ("me-1", None):
        async with raw_pod(b"HTTP/1.1 200 OK\r\n%bcontent-length: 0\r\n\r\n" % own) as pod:
            await api.register("bot", f"v-{given}", acp_url=pod.url)
            path = f"/agents/{(await api.get('/agents/name/bot')).json['id']}/deployments/v-{given}/rpc"
            answer = await api.post(path, {}, headers={"x-request-id": given} if given else {})
            [received] = answer.headers.getall("x-request-id")
            assert received == given if given else len(received) == 32
