"""What an answer to a probe means, and what becomes of one that is none; on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import IPv4Network
from uuid import UUID

import pytest
import pytest_asyncio
from aiohttp import web

from services.health.prober import BODY_MAX_BYTES, Prober, open_prober, verdict_of
from services.settings import Settings
from tests.integration.api.pods import raw_pod, refused_address, running_pod, silent_port

AGENT = UUID("00000000-0000-4000-8000-00000000000a")
PATIENCE = timedelta(seconds=20)
IMPATIENCE = timedelta(seconds=0.3)


@pytest_asyncio.fixture
async def prober() -> AsyncIterator[Prober]:
    """A prober as a janitor on this machine has it."""
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
def test_what_an_answer_means(status: int, body: bytes, failure: str | None) -> None:
    """Any 2xx is alive, 404 and 405 have no health page, and who names another agent is somebody else."""
    assert verdict_of(status, body, AGENT) == failure


async def test_a_redirect_is_not_followed(prober: Prober) -> None:
    """A pod answers for itself."""
    async with running_pod() as elsewhere:

        async def redirects(_: web.BaseRequest) -> web.StreamResponse:
            raise web.HTTPFound(elsewhere.url)

        async with running_pod(redirects) as pod:
            assert await prober.ask(pod.url, AGENT, PATIENCE) == "its health page answers with status 302"
        assert elsewhere.seen == []


async def test_who_does_not_answer_in_time_has_failed(prober: Prober) -> None:
    """Whether nothing is said at all or nobody is there."""
    async with silent_port() as port:
        assert await prober.ask(f"http://127.0.0.1:{port}/", AGENT, IMPATIENCE) == "no answer within 0.3 s"
    async with refused_address() as address:
        assert await prober.ask(address, AGENT, PATIENCE) == "cannot connect (Connection refused)"
    async with raw_pod(b"SSH-2.0\r\n\r\n") as pod:
        assert "no valid answer" in (await prober.ask(pod.url, AGENT, PATIENCE) or "")


async def test_the_status_counts_where_the_body_does_not_end(prober: Prober) -> None:
    """A health page that is a stream, or larger than any health page, is alive and read no further."""

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
        assert await prober.ask(pod.url, AGENT, PATIENCE) is None


async def test_nothing_is_asked_that_may_not_be_dialled() -> None:
    """The janitor is no way around the gateway's rules, and says so."""
    async with running_pod() as pod:
        for change in ({"dial_networks": (IPv4Network("10.0.0.0/8"),)}, {"dial_hosts": (".internal",)}):
            async with open_prober(Settings().model_copy(update=change)) as prober:
                assert "may not be dialled" in (await prober.ask(pod.url, AGENT, PATIENCE) or "")
        assert pod.seen == []
