"""Headers of agents' answers that do not reach callers unchanged: invalid ones, redirects, those of an origin."""

import pytest

from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import raw_pod

RPC = "/agents/name/bot/rpc"
# Headers by which a browser would change how it treats the whole origin of the API, or the answer as a page.
OF_THE_ORIGIN = (
    "Accept-CH: Width",
    "Access-Control-Allow-Origin: *",
    "Access-Control-Allow-Credentials: true",
    "Activate-Storage-Access: load",
    'Alt-Svc: h2="evil:443"',
    'Clear-Site-Data: "*"',
    "Content-Security-Policy: default-src *",
    "Content-Security-Policy-Report-Only: default-src *",
    "Cross-Origin-Embedder-Policy: unsafe-none",
    "Cross-Origin-Opener-Policy: unsafe-none",
    "Cross-Origin-Resource-Policy: cross-origin",
    "Document-Policy: force-load-at-top",
    "Expect-CT: max-age=1",
    "Feature-Policy: camera *",
    'NEL: {"report_to":"x"}',
    "Origin-Agent-Cluster: ?1",
    "Permissions-Policy: camera=*",
    "Public-Key-Pins: max-age=1",
    "Refresh: 0; url=http://evil",
    "Report-To: {}",
    'Reporting-Endpoints: x="https://evil"',
    "Sec-Session-Registration: (ES256)",
    "Service-Worker-Allowed: /",
    "Set-Cookie: a=b",
    "Set-Cookie2: a=b",
    "Set-Login: logged-in",
    'Speculation-Rules: "/rules"',
    "Strict-Transport-Security: max-age=31536000; includeSubDomains",
    "Timing-Allow-Origin: *",
    'Use-As-Dictionary: match="/*"',
    "WWW-Authenticate: Basic realm=x",
    "X-Content-Type-Options: none",
    "X-Frame-Options: ALLOWALL",
    "X-Permitted-Cross-Domain-Policies: all",
)
PASSED = (
    "Content-Type: text/html",
    "X-Mine: 1",
    "Mcp-Session-Id: s",
    "Link: </a>; rel=next",
    "Cache-Control: no-store",
)


def an_answer(*headers: str, status: str = "200 OK", body: bytes = b"") -> bytes:
    """An answer as bytes."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + body


@pytest.mark.parametrize("character", [1, 7, 8, 11, 12, 14, 27, 31, 127])
async def test_control_characters_in_a_header(api: Api, character: int) -> None:
    """502 that says not to repeat the call: the agent has executed it."""
    async with raw_pod(an_answer(f"X-Note: a{chr(character)}b")) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        answer = await api.post(RPC, {"id": 7})
        assert answer.rpc_error(502, "agent-protocol-error", sent=True)["id"] == 7
        assert len(pod.seen) == 1


async def test_control_characters_with_error_style_jsonrpc(api: Api) -> None:
    """The same failure as an answer with status 200."""
    async with raw_pod(an_answer("X-Note: a\x7fb")) as pod:
        await api.register("bot", "v1", acp_url=pod.url, error_style="jsonrpc")
        assert (await api.post(RPC, {"id": 7})).rpc_error(200, "agent-protocol-error", sent=True)["id"] == 7


async def test_headers_of_the_origin(api: Api) -> None:
    """An agent's page opens in a sandbox, and its headers have no effect on the API's origin. The body is unchanged."""
    page = b"<html><script>alert(1)</script>\x00\xff"
    async with raw_pod(an_answer(*OF_THE_ORIGIN, *PASSED, body=page)) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        answer = await api.get(RPC)
    assert (answer.status, answer.body) == (200, page)
    assert answer.headers.getall("content-security-policy") == ["sandbox"]
    assert answer.headers.getall("x-content-type-options") == ["nosniff"]
    names = {line.partition(":")[0].lower() for line in OF_THE_ORIGIN}
    names -= {"content-security-policy", "x-content-type-options"}
    assert names.isdisjoint(name.lower() for name in answer.headers)
    for line in PASSED:
        name, _, value = line.partition(": ")
        assert answer.headers[name] == value


async def test_headers_with_these_prefixes_speak_for_the_origin(api: Api) -> None:
    """Also headers that do not exist yet."""
    async with raw_pod(an_answer("Cross-Origin-New: 1", "Access-Control-New: 1", "Sec-New: 1")) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        answer = await api.get(RPC)
    assert {"cross-origin-new", "access-control-new", "sec-new"}.isdisjoint(name.lower() for name in answer.headers)


@pytest.mark.parametrize(
    ("location", "returned"),
    [
        ("{url}/mcp", ""),
        ("{url}/mcp?a=%2F&b", "?a=%2F&b"),
        ("/mcp?x#part", "?x#part"),
        ("mcp", ""),
        ("?only=query", "?only=query"),
        ("//{host}/mcp", ""),
    ],
)
async def test_a_redirect_to_the_agents_own_endpoint(serve: Serve, location: str, returned: str) -> None:
    """Leads to the gateway's route, on PODIUM_PUBLIC_URL if that is set."""
    for public, base in (("", ""), ("https://podium.example/base/", "https://podium.example/base")):
        api = await serve(public_url=public)
        async with raw_pod(b"") as pod:
            target = location.format(url=pod.url, host=pod.url.removeprefix("http://"))
            pod.answer = an_answer(f"Location: {target}", status="307 Temporary Redirect")
            await api.register("bot", "v1", acp_url=pod.url, rpc_path="/mcp")
            answer = await api.post(RPC, {"id": 1}, allow_redirects=False)
        assert (answer.status, answer.headers["location"]) == (307, f"{base}{RPC}{returned}")


@pytest.mark.parametrize(
    "location",
    ["{url}/mcp/", "/other", "https://{host}/mcp", "http://evil.example/mcp", "http://[bad/mcp", "//evil.example/mcp"],
)
@pytest.mark.parametrize("status", ["302 Found", "308 Permanent Redirect"])
async def test_a_redirect_to_any_other_address(api: Api, status: str, location: str) -> None:
    """502: callers cannot follow it through the gateway, and must not send their calls to an agent's address."""
    async with raw_pod(b"") as pod:
        target = location.format(url=pod.url, host=pod.url.removeprefix("http://"))
        pod.answer = an_answer(f"Location: {target}", status=status)
        await api.register("bot", "v1", acp_url=pod.url, rpc_path="/mcp")
        answer = await api.post(RPC, {"id": 1}, allow_redirects=False)
        assert answer.rpc_error(502, "agent-redirects", sent=True)["id"] == 1


async def test_a_location_of_another_status(api: Api) -> None:
    """Is left out if it is not the gateway's route; the answer passes."""
    async with raw_pod(an_answer("Location: /tasks/1", status="201 Created", body=b"ok")) as pod:
        await api.register("bot", "v1", acp_url=pod.url)
        answer = await api.post(RPC, {"id": 1})
    assert (answer.status, answer.body) == (201, b"ok")
    assert "location" not in answer.headers
