"""Agents with an https address, called by an API process that trusts their authority."""

import asyncio
import io
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import trustme
from aiohttp import web

from services.connections import REST_SECONDS
from services.settings import Settings
from tests.integration.api.client import Api
from tests.integration.api.pods import running_pod
from tests.support.forked_programs import NEW_PROCESS
from tests.support.processes import api_process

MIB = 1024 * 1024
RPC = "/agents/name/bot/rpc"


@pytest.fixture
def authority() -> trustme.CA:
    """The authority that the API trusts."""
    return trustme.CA()


@pytest_asyncio.fixture
async def api(settings: Settings, authority: trustme.CA, tmp_path: Path) -> AsyncIterator[Api]:
    """An API process of its own: OpenSSL reads SSL_CERT_FILE when a process starts."""
    ca_file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with (
        api_process(settings, tmp_path, SSL_CERT_FILE=str(ca_file), **NEW_PROCESS) as url,
        aiohttp.ClientSession() as session,
    ):
        yield Api(url, session)


def context_of(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """A server's context with a certificate of this authority for these names."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def test_calls_over_tls(api: Api, authority: trustme.CA) -> None:
    """Bodies of any size pass, and connections are kept."""
    connections = set()

    async def sizes(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        connections.add(request.transport.get_extra_info("peername"))
        return web.Response(body=b"answer" * len(pod.seen[-1].body))

    async with running_pod(sizes, tls=context_of(authority, "127.0.0.1")) as pod, asyncio.timeout(30):
        await api.register("bot", "v1", acp_url=pod.url)
        bodies = (b"", b"small", b"x" * 4 * MIB, b"last")
        for body in bodies:
            answer = await api.call("POST", RPC, data=io.BytesIO(body))
            assert (answer.status, answer.body == b"answer" * len(body), pod.seen[-1].body == body) == (200, True, True)
            await asyncio.sleep(5 * REST_SECONDS)
    # A slow machine may let one rest for longer than connections are kept.
    assert len(connections) < len(bodies)


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_an_agent_with_a_wrong_certificate_gets_no_call(api: Api, authority: trustme.CA, wrong: str) -> None:
    """502, and nothing was sent."""
    wrongly = context_of(trustme.CA(), "127.0.0.1") if wrong == "authority" else context_of(authority, "localhost")
    async with running_pod(tls=wrongly) as pod, asyncio.timeout(30):
        await api.register("bot", "v1", acp_url=pod.url)
        (await api.post(RPC, {"id": 1})).rpc_error(502, "agent-unreachable")
    assert not pod.seen
