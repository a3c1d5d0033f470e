"""How the prober judges responses, timeouts and failed connections; on real sockets."""

import asyncio
import errno
import os
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from ipaddress import IPv4Network
from typing import Any
from uuid import UUID

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.abc import AbstractResolver

from services.domain.health_policy import ProbeOutcome
from services.egress import Denied, EgressRules
from services.health.prober import BODY_MAX_BYTES, LATEST_NOTICE_SECONDS, OWN_ERRORS, Prober, open_prober, outcome_of
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
        (200, b'{"agent_id": "a\\u0000"}', "the pod there belongs to another agent, whose id is not printable"),
        (200, b'{"agent_id": "\\u001b[2J"}', "the pod there belongs to another agent, whose id is not printable"),
        (200, b'{"agent_id": "%b"}' % (b"x" * 65), "the pod there belongs to another agent, whose id is not printable"),
    ],
)
def test_a_response_passes_or_fails_the_probe(status: int, body: bytes, failure: str | None) -> None:
    """2xx passes; 404 and 405 mean there is no health page and pass, too; a body that names another agent fails."""
    outcome = outcome_of(status, body, AGENT)
    assert (outcome.kind, outcome.reason) == ("answered" if failure is None else "failed", failure)
    assert outcome.other_agent == (failure is not None and "another agent" in failure)


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
                assert (await prober.probe(pod.url, AGENT, TIMEOUT)).kind == "unknown"
        assert pod.seen == []


async def test_a_name_that_cannot_be_resolved_is_unknown(prober: Prober) -> None:
    """The resolver may be at fault, so the pod is not."""
    outcome = await prober.probe("http://nowhere.invalid/healthz", AGENT, TIMEOUT)
    assert (outcome.kind, outcome.reason) == ("unknown", "its host's name cannot be resolved")


async def test_without_file_descriptors_the_outcome_is_unknown(prober: Prober) -> None:
    """The prober's process has no descriptor left: it cannot open a socket."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with running_pod() as pod:
        await prober.probe(pod.url, AGENT, TIMEOUT)
        opened = [os.open(os.devnull, os.O_RDONLY)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened[0] + 64, hard))
        try:
            with suppress(OSError):
                while True:
                    opened.append(os.open(os.devnull, os.O_RDONLY))
            outcome = await prober.probe(pod.url, AGENT, TIMEOUT)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in opened:
                os.close(each)
    assert (outcome.kind, outcome.reason) == ("unknown", "cannot connect (Too many open files)")


@pytest.mark.parametrize("number", sorted(OWN_ERRORS | {errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT}))
async def test_an_error_of_the_probers_own_machine_or_network_is_unknown(number: int) -> None:
    """No route, no local address, no memory; a connection that the pod's machine refuses is a failure."""

    class Failing(aiohttp.TCPConnector):
        """A connector whose connections all fail in the same way."""

        async def _create_connection(self, req: Any, *_: Any, **__: Any) -> Any:
            raise aiohttp.ClientConnectorError(req.connection_key, OSError(number, os.strerror(number)))

    async with aiohttp.ClientSession(connector=Failing()) as session:
        outcome = await Prober(session, EgressRules.of(Settings())).probe("http://127.0.0.1:9/", AGENT, TIMEOUT)
    assert outcome.kind == ("unknown" if number in OWN_ERRORS else "failed")
    assert outcome.reason == f"cannot connect ({os.strerror(number)})"


@pytest.mark.parametrize(("other", "kind"), [(errno.ENETUNREACH, "unknown"), (errno.ECONNREFUSED, "failed")])
async def test_a_name_with_several_addresses_fails_if_one_of_them_does(other: int, kind: str) -> None:
    """One address is denied; the other one has no route, or refuses the connection."""

    class TwoAddresses(AbstractResolver):
        """Resolves every name to an address that is denied and another one."""

        async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
            addresses = ("10.0.0.1", "10.0.0.2")
            return [
                {"hostname": host, "host": each, "port": port, "family": family, "proto": 0, "flags": 0}
                for each in addresses
            ]

        async def close(self) -> None:
            """Nothing is open."""

    def refuse(info: Any) -> socket.socket:
        raise Denied("denied") if info[4][0] == "10.0.0.1" else OSError(other, os.strerror(other))

    connector = aiohttp.TCPConnector(resolver=TwoAddresses(), socket_factory=refuse, family=socket.AF_INET)
    async with aiohttp.ClientSession(connector=connector) as session:
        outcome = await Prober(session, EgressRules.of(Settings())).probe("http://two.internal/", AGENT, TIMEOUT)
    assert outcome.kind == kind


async def test_a_time_limit_that_is_noticed_too_late_is_unknown(prober: Prober) -> None:
    """The process of the prober was stopped meanwhile; it cannot know whether the pod would have answered."""
    async with silent_port() as port:
        probe = asyncio.create_task(prober.probe(f"http://127.0.0.1:{port}/", AGENT, SHORT_TIMEOUT))
        await asyncio.sleep(0)
        time.sleep(SHORT_TIMEOUT.total_seconds() + LATEST_NOTICE_SECONDS + 0.1)  # noqa: ASYNC251 - a stopped process
        assert await probe == ProbeOutcome("unknown", "the prober did not run")


async def test_a_failed_tls_handshake_is_a_failure(prober: Prober) -> None:
    """The number of a TLS error equals that of an error of the operating system."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is not TLS")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        outcome = await prober.probe(f"https://{host}:{port}/", AGENT, TIMEOUT)
    assert outcome.kind == "failed"
    assert "no answer" not in (outcome.reason or "")
