"""How the prober judges responses, timeouts and failed connections; on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import IPv4Network
from uuid import UUID

import pytest
import pytest_asyncio
from aiohttp import web

from services.health.prober import BODY_MAX_BYTES, Prober, failure_of, open_prober
from services.settings import Settings
from tests.integration.api.pods import raw_pod, refused_address, running_pod, silent_port

AGENT = UUID("00000000-0000-4000-8000-00000000000a")
TIMEOUT = timedelta(seconds=20)
SHORT_TIMEOUT = timedelta(seconds=0.3)


@pytest_asyncio.fixture
async def prober() -> AsyncIterator[Prober]:
    """A prober with default settings."""
    async with open_prober(Settings()) as prober:
        yield prober


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (200, b"", None),
        (204, b"", None),
        (299, b"fine", None),
        (404, b"no such page", None),
        (405, b"", None),
        (301, b"", "its health page answers with status 301"),
        (401, b"", "its health page answers with status 401"),
        (500, b"", "its health page answers with status 500"),
        (503, b'{"agent_id": null}', "its health page answers with status 503"),
        (200, b'{"status": "healthy"}', None),
        (200, b'{"agent_id": null}', None),
        (200, b'{"agent_id": 7}', None),
        (200, b'["agent_id"]', None),
        (200, b"{", None),
        (200, f'{{"agent_id": "{AGENT}"}}'.encode(), None),
        (200, b'{"agent_id": "other"}', "the pod there belongs to another agent, other"),
        (404, b'{"agent_id": "other"}', "the pod there belongs to another agent, other"),
    ],
)
def test_a_response_passes_or_fails_the_probe(status: int, body: bytes, failure: str | None) -> None:
    """2xx passes; 404 and 405 mean there is no health page and pass, too; a body that names another agent fails."""
    assert failure_of(status, body, AGENT) == failure


async def test_a_redirect_is_not_followed(prober: Prober) -> None:
    """A redirect fails the probe, and its target gets no request."""
    async with running_pod() as elsewhere:

        async def redirects(_: web.BaseRequest) -> web.StreamResponse:
            raise web.HTTPFound(elsewhere.url)

        async with running_pod(redirects) as pod:
            assert await prober.ask(pod.url, AGENT, TIMEOUT) == "its health page answers with status 302"
        assert elsewhere.seen == []


async def test_a_pod_without_a_valid_response_in_time_fails(prober: Prober) -> None:
    """The reason tells apart silence, a refused connection, and a response that is not HTTP."""
    async with silent_port() as port:
        assert await prober.ask(f"http://127.0.0.1:{port}/", AGENT, SHORT_TIMEOUT) == "no answer within 0.3 s"
    async with refused_address() as address:
        assert await prober.ask(address, AGENT, TIMEOUT) == "cannot connect (Connection refused)"
    async with raw_pod(b"SSH-2.0\r\n\r\n") as pod:
        assert "no valid answer" in (await prober.ask(pod.url, AGENT, TIMEOUT) or "")


async def test_the_status_decides_if_the_body_does_not_end(prober: Prober) -> None:
    """A health page that streams, or is too large, passes by its status; the rest of the body is not read."""

    async def streams(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"agent_id": "other"')
        await asyncio.Event().wait()
        return response

    async def floods(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * BODY_MAX_BYTES)

    async with running_pod(streams) as pod:
        assert await prober.ask(pod.url, AGENT, timedelta(seconds=2)) is None
    async with running_pod(floods) as pod:
        assert await prober.ask(pod.url, AGENT, TIMEOUT) is None


async def test_a_denied_address_is_not_probed() -> None:
    """Probes obey the same egress rules as the gateway, and the reason says so."""
    async with running_pod() as pod:
        for change in ({"dial_networks": (IPv4Network("10.0.0.0/8"),)}, {"dial_hosts": (".internal",)}):
            async with open_prober(Settings().model_copy(update=change)) as prober:
                assert "may not be dialled" in (await prober.ask(pod.url, AGENT, TIMEOUT) or "")
        assert pod.seen == []
