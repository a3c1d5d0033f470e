"""What the gateway forwards in both directions (bytes, headers, chunks), and to which deployment."""

import asyncio
import gzip
import io
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from services.storage.database import Sessions
from tests.integration.api.client import Api
from tests.integration.api.pods import Handler, Pod, pausing, running_pod
from tests.support.waiting import eventually

# Bytes that parsing and serializing would change: order, duplicates, spaces, large numbers, escapes, invalid UTF-8.
STRANGE_BODIES = (
    b'{"id":1,"id":"1","a":9007199254740993,"a":1e400}',
    b'{"lone":"\\ud800","id":-0.0,"big":-123456789012345678901234567890}',
    b'[{"jsonrpc":"2.0","id":1},{"jsonrpc":"2.0"}]',
    b"[]",
    b"not JSON at all",
    bytes(range(256)),
    b"\x00",
    b"",
)
STRANGE_BODY = b' {"id":1,"id":"1", "n": 123456789012345678901234567890.10,"e":"\\u00e9\\/","raw":"\xff\x00"}\r\n'


async def test_bodies_pass_byte_for_byte(api: Api) -> None:
    """Any bytes in both directions, in one piece or in many, up to the limit."""

    async def echo(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=io.BytesIO(pod.seen[-1].body))

    async def in_chunks() -> AsyncIterator[bytes]:
        for byte in STRANGE_BODY:
            yield bytes([byte])

    async with running_pod(echo) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        large = bytes(range(256)) * (4 * 1024 * 4)
        for data, expected in (
            (STRANGE_BODY, STRANGE_BODY),
            (in_chunks(), STRANGE_BODY),
            *((body, body) for body in STRANGE_BODIES),
            (io.BytesIO(large), large),
        ):
            answer = await api.call("POST", "/agents/name/bot/rpc", data=data)
            assert answer.status == 200
            assert answer.body == expected == pod.seen[-1].body


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_methods_and_queries_pass(api: Api, pod: Pod, method: str) -> None:
    """The query is unchanged, and a request without a body stays without one."""
    await api.register("bot", "v1", acp_url=f"{pod.url}/base/", rpc_path="/mcp/x%2Fy")
    answer = await api.call(method, "/agents/name/bot/rpc?a=%2F&a=b+c&%C3%A9=%00&d")
    assert answer.status == 200
    [seen] = pod.seen
    assert (seen.method, seen.target) == (method, "/base/mcp/x%2Fy?a=%2F&a=b+c&%C3%A9=%00&d")
    assert seen.body == b""


async def test_request_headers(api: Api, pod: Pod) -> None:
    """End-to-end headers pass, also repeated; credentials, hop-by-hop and origin headers do not."""
    await api.register("bot", "v1", acp_url=pod.url)
    stripped = {
        "Authorization": "Bearer secret",
        "Cookie": "session=secret",
        "X-Api-Key": "secret",
        "X-Agent-Api-Key": "secret",
        "Proxy-Authorization": "Basic c2VjcmV0",
        "Forwarded": "for=1.2.3.4",
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Proto": "https",
        "X-Real-IP": "1.2.3.4",
        "Via": "1.1 proxy",
        "Origin": "http://localhost:3000",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "Trailer": "x-sum",
        "Upgrade": "h2c",
        "Proxy-Connection": "keep-alive",
        "Connection": "keep-alive, X-Hop, close",
        "X-Hop": "1",
    }
    passed = [
        ("Accept", "application/json, text/event-stream"),
        ("Content-Type", "application/json"),
        ("Mcp-Session-Id", "abc"),
        ("Mcp-Param-Region", "eu"),
        ("A2A-Version", "1.0"),
        ("Last-Event-ID", "7"),
        ("tracestate", "a=b"),
        ("baggage", "k=v"),
        ("X-Request-ID", "my-id"),
        ("X-Custom", "first"),
        ("X-Custom", "second"),
        ("X-Text", "grüße"),
    ]
    trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    await api.call("POST", "/agents/name/bot/rpc", data=b"{}", headers=[*stripped.items(), *passed, trace])
    [seen] = pod.seen
    made = {"user-agent", "traceparent"}
    arrived = sorted((name.lower(), value) for name, value in seen.headers if name.lower() not in made)
    expected = [(name.lower(), value) for name, value in passed if name != "X-Text"]
    expected += [
        ("x-text", "grüße".encode().decode("latin-1")),
        ("host", pod.url.removeprefix("http://")),
        ("content-length", "2"),
        ("accept-encoding", "gzip, deflate"),
    ]
    assert arrived == sorted(expected)


async def test_only_a_request_id_and_a_trace_are_added(api: Api, pod: Pod) -> None:
    """A request without headers reaches the agent with a request id and a traceparent only."""
    await api.register("bot", "v1", acp_url=pod.url)
    host, port = api.host_and_port
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET /agents/name/bot/rpc HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()
    [seen] = pod.seen
    assert {name.lower() for name, _ in seen.headers} == {"host", "x-request-id", "traceparent"}
    assert len(seen.header("x-request-id")[0]) == 32


@pytest.mark.parametrize("status", [200, 201, 204, 302, 401, 404, 418, 500, 503])
async def test_answers_pass_verbatim(api: Api, status: int) -> None:
    """Status, repeated headers and encoded bodies pass; headers name the deployment that answered."""
    packed = b"" if status == 204 else gzip.compress(b'{"result": 1}', mtime=0)

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(status=status, body=packed)
        response.headers.add("X-Many", "one")
        response.headers.add("X-Many", "two")
        response.headers.add("Content-Encoding", "gzip")
        response.headers.add("Mcp-Session-Id", "abc")
        response.headers.add("Date", "Mon, 01 Jan 2024 00:00:00 GMT")
        response.headers.add("Server", "an-agent")
        response.headers.add("Set-Cookie", "a=b")
        response.headers.add("Keep-Alive", "timeout=9")
        response.headers.add("Connection", "x-hop")
        response.headers.add("X-Hop", "1")
        response.headers.add("X-Podium-Deployment-Id", "forged")
        response.headers.add("X-Podium-Generation", "99")
        return response

    async with running_pod(answer) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        got = await api.post("/agents/name/bot/rpc", {}, allow_redirects=False)
    assert len(pod.seen) == 1
    assert (got.status, got.body) == (status, packed)
    assert got.headers.getall("x-many") == ["one", "two"]
    assert got.headers.getall("date") == ["Mon, 01 Jan 2024 00:00:00 GMT"]
    assert got.headers.getall("server") == ["an-agent"]
    assert got.headers["content-encoding"] == "gzip"
    assert got.headers["mcp-session-id"] == "abc"
    for name in ("set-cookie", "keep-alive", "x-hop"):
        assert name not in got.headers
    assert got.headers.getall("x-podium-deployment-id") == ["v1"]
    assert got.headers.getall("x-podium-generation") == ["1"]


async def test_every_status_passes(api: Api) -> None:
    """Unchanged, with its body if it has one."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        status = int(request.query_string)
        return web.Response(status=status, body=None if status in {204, 304} else b"as it was")

    async with running_pod(answer) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        for status in range(200, 504):
            answered = await api.call("POST", f"/agents/name/bot/rpc?{status}", data=b"{}", allow_redirects=False)
            assert answered.status == status
            assert answered.body == (b"" if status in {204, 304} else b"as it was")
            assert "retry-after" not in answered.headers


async def test_chunks_pass_at_once(api: Api) -> None:
    """Each piece of an answer arrives before the agent sends the next one."""
    go_on = asyncio.Event()

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(3):
            await go_on.wait()
            go_on.clear()
            await response.write(f": comment {number}\n\n".encode())
        return response

    async with running_pod(stream) as pod, asyncio.timeout(10):
        await api.register("bot", "v1", acp_url=pod.url)
        async with api.session.post(f"{api.url}/agents/name/bot/rpc", json={}) as response:
            assert response.content_type == "text/event-stream"  # the head arrives before the first piece
            for number in range(3):
                go_on.set()
                assert await response.content.readany() == f": comment {number}\n\n".encode()
            assert await response.content.readany() == b""


async def test_every_call_after_a_promote_reaches_the_new_version(api: Api) -> None:
    """With many promotes back and forth and calls in flight: no call fails or reaches a wrong version."""

    def named(name: str) -> Handler:
        async def answer(_: web.BaseRequest) -> web.StreamResponse:
            return web.Response(text=name)

        return answer

    async with running_pod(named("v1")) as one, running_pod(named("v2")) as two:
        agent = await api.register("bot", "v1", acp_url=one.url)
        await api.register("bot", "v2", acp_url=two.url)
        done = False
        statuses: set[int] = set()

        async def keep_calling() -> None:
            while not done:
                statuses.add((await api.post("/agents/name/bot/rpc", {})).status)

        background = [asyncio.create_task(keep_calling()) for _ in range(4)]
        for _ in range(15):
            for version in ("v2", "v1"):
                await api.promote(agent, version)
                answers = await asyncio.gather(*(api.post("/agents/name/bot/rpc", {}) for _ in range(5)))
                assert {answer.body.decode() for answer in answers} == {version}
                assert {answer.headers["x-podium-deployment-id"] for answer in answers} == {version}
        done = True
        await asyncio.gather(*background)
        assert statuses == {200}


async def test_previews_are_reached_only_by_their_own_route(api: Api, sessions: Sessions, pod: Pod) -> None:
    """Only while they are Ready, only under their agent; production does not change."""
    async with running_pod() as preview:
        agent = await api.register("bot", "v1", acp_url=pod.url)
        await api.register("bot", "v2", acp_url=preview.url, rpc_path="/preview")
        await api.register("other", "o1", acp_url=preview.url)
        deployments = f"/agents/{agent['id']}/deployments"
        answer = await api.post(f"{deployments}/v2/rpc", {})
        assert answer.headers["x-podium-deployment-id"] == "v2"
        assert [seen.target for seen in preview.seen] == ["/preview"]
        assert (await api.post(f"{deployments}/v1/rpc", {})).headers["x-podium-deployment-id"] == "v1"

        await api.post(deployments, {"id": "pending", "docker_image": "i"})
        pending = await api.post(f"{deployments}/pending/rpc", {"id": 3})
        assert pending.rpc_error(503, "deployment-unavailable")["id"] == 3
        assert int(pending.headers["retry-after"]) > 0
        (await api.post(f"{deployments}/o1/rpc", {})).rpc_error(404, "deployment-not-found")
        (await api.post(f"{deployments}/nowhere/rpc", {})).rpc_error(404, "deployment-not-found")
        (await api.post(f"{deployments}/a%00b/rpc", {})).rpc_error(404, "deployment-not-found")
        async with sessions.begin() as session:
            connection = await session.connection()
            await connection.exec_driver_sql("UPDATE deployments SET status = 'Failed' WHERE id = 'v2'")
        (await api.post(f"{deployments}/v2/rpc", {})).rpc_error(503, "deployment-unavailable")
        await api.delete(f"{deployments}/v2")
        (await api.post(f"{deployments}/v2/rpc", {})).rpc_error(410, "deployment-deleted")
        await api.delete(f"/agents/{agent['id']}")
        (await api.post(f"{deployments}/v1/rpc", {})).rpc_error(410, "agent-deleted")
        assert (len(preview.seen), len(pod.seen)) == (1, 1)


async def test_legacy_agents_are_served_without_a_deployment(api: Api, pod: Pod) -> None:
    """At the registered address; a preview gets none of their calls."""
    await api.register("bot", acp_url=pod.url, rpc_path="/legacy")
    await api.register("bot", "v1", acp_url="http://127.0.0.1:1")
    answer = await api.post("/agents/name/bot/rpc", {})
    assert answer.status == 200
    assert "x-podium-deployment-id" not in answer.headers
    assert answer.headers["x-podium-generation"] == "1"
    assert pod.seen[0].target == "/legacy"


async def test_a_running_stream_outlives_a_promote(api: Api, pod: Pod) -> None:
    """A stream that started on one version ends on it."""
    finish = asyncio.Event()

    async with running_pod(pausing(b"begun ", finish, b"ended")) as old, asyncio.timeout(10):
        agent = await api.register("bot", "v1", acp_url=old.url)
        await api.register("bot", "v2", acp_url=pod.url)
        call = asyncio.create_task(api.post("/agents/name/bot/rpc", {}))

        async def begun() -> bool:
            return bool(old.seen)

        await eventually(begun, "the call arrived")
        await api.promote(agent, "v2")
        finish.set()
        answer = await call
    assert answer.body == b"begun ended"
    assert answer.headers["x-podium-deployment-id"] == "v1"
