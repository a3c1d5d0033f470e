"""One delivery against receivers that misbehave, and addresses that must not be dialled."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from yarl import URL

from services.egress import EgressRules, Resolver
from services.errors import DestinationDenied
from services.settings import Settings
from services.webhooks.sender import (
    BODY_MAX_BYTES,
    BODY_SECONDS,
    Attempt,
    Delivery,
    open_webhook_sender,
    printable,
    retry_after_of,
)
from tests.integration.api.pods import Pod, raw_pod, running_pod, silent_port
from tests.support.receivers import running_receiver
from tests.support.unreachable import full_backlog

LOCAL = (IPv4Network("127.0.0.0/8"),)
EVERYTHING = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
SOON = timedelta(milliseconds=500)


async def send(url: str, **changes: Any) -> Attempt:
    """The outcome of one delivery, with these settings."""
    settings = Settings(**{"webhook_timeout": SOON, "webhook_dial_networks": LOCAL, **changes})
    async with open_webhook_sender(settings) as sender:
        return await sender.send(Delivery(url, "an-id", b"{}", (b"s" * 32,)))


@asynccontextmanager
async def endless(*, head_first: bool, seconds: float) -> AsyncIterator[str]:
    """A server that sends one byte after another: of a head that never ends, or of a body."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + (b"x-slow: " if head_first else b"content-length: 99999999\r\n\r\n"))
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(seconds)

    connections: set[asyncio.Task[None]] = set()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            writer.close()

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/"
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def test_a_redirect_is_not_followed() -> None:
    """G102: it is a refusal, and nothing is sent to its location."""
    async with running_receiver() as other:

        async def redirect(_: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=307, headers={"location": other.url})

        async with running_pod(redirect) as first:
            attempt = await send(first.url)
    assert (attempt.outcome, attempt.status) == ("refused", 307)
    assert other.seen == []


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "168.63.129.16",
        "[::ffff:169.254.169.254]",
        "0.0.0.0",  # noqa: S104 - an address to refuse
        "[64:ff9b::a9fe:a9fe]",
    ],
)
async def test_metadata_services_are_never_dialled(host: str) -> None:
    """G102: whatever the settings allow."""
    attempt = await send(f"http://{host}/latest/meta-data", webhook_dial_networks=EVERYTHING)
    assert attempt.outcome == "denied", attempt
    assert attempt.seconds < SOON.total_seconds()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "192.168.1.1", "172.16.0.1", "[fd12::1]"]
)
async def test_private_addresses_need_a_setting(host: str) -> None:
    """G102: receivers are public by default, and under `/0`: this machine and private networks are denied."""
    for networks in ((), EVERYTHING):
        assert (await send(f"http://{host}:1/", webhook_dial_networks=networks)).outcome == "denied"


async def test_public_addresses_are_allowed_by_default() -> None:
    """Of both families; the rules for agents are others."""
    rules = EgressRules.of_webhooks(Settings())
    for address in ("8.8.8.8", "2606:4700:4700::1111"):
        rules.check_endpoint(ip_address(address), 443)


@pytest.mark.parametrize(
    "address", ["5f00::1", "4000::1", "100::1", "2001:10::1", "2001:20::1", "2001:db8::1", "3fff::1"]
)
async def test_addresses_of_ipv6_that_are_not_public(address: str) -> None:
    """G102: those for protocols and documentation, and all that is not global unicast."""
    for networks in ((), EVERYTHING):
        with pytest.raises(DestinationDenied):
            EgressRules.of_webhooks(Settings(webhook_dial_networks=networks)).check_endpoint(ip_address(address), 443)


async def test_one_private_network_beside_public_addresses() -> None:
    """G102: what a setting names is allowed, and no other private address, nor this machine."""
    rules = EgressRules.of_webhooks(Settings(webhook_dial_networks=(IPv4Network("10.0.0.0/8"), *EVERYTHING)))
    for address in ("10.1.2.3", "8.8.8.8", "2606:4700:4700::1111"):
        rules.check_endpoint(ip_address(address), 443)
    for address in ("127.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "::1", "fd12::1"):
        with pytest.raises(DestinationDenied):
            rules.check_endpoint(ip_address(address), 443)


async def test_hosts_and_ports_can_be_limited(pod: Pod) -> None:
    """G102: by suffix and by number."""
    port = URL(pod.url).port
    assert (await send(pod.url, webhook_dial_ports=(port,))).outcome == "accepted"
    assert (await send(pod.url, webhook_dial_ports=(1,))).outcome == "denied"
    assert (await send(pod.url, webhook_dial_hosts=(".example",))).outcome == "denied"
    assert len(pod.seen) == 1


async def test_a_name_that_changes_its_address(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """G102: the address that is dialled is checked, not the one that was looked up before (DNS rebinding)."""
    addresses = iter(["127.0.0.1", "169.254.169.254", "127.0.0.1"])
    lookup = Resolver.resolve

    async def rebinding(self: Resolver, host: str, port: int = 0, **family: Any) -> Any:
        return await lookup(self, next(addresses) if host == "rebind.example" else host, port, **family)

    monkeypatch.setattr(Resolver, "resolve", rebinding)
    url = f"http://rebind.example:{URL(pod.url).port}/"
    outcomes = [(await send(url, webhook_dial_networks=(*EVERYTHING, *LOCAL))).outcome for _ in range(3)]
    assert outcomes == ["accepted", "denied", "accepted"]
    assert len(pod.seen) == 2


async def test_podiums_own_servers_are_never_dialled(settings: Settings) -> None:
    """G102: neither PostgreSQL and RabbitMQ nor what the caller names, such as the API."""
    database = URL(settings.database_url.get_secret_value())
    changes = {"webhook_dial_networks": (*EVERYTHING, *LOCAL), "webhook_timeout": SOON}
    open_settings = settings.model_copy(update=changes)
    async with open_webhook_sender(open_settings, ("127.0.0.1", 9)) as sender:
        for host, port in ((database.host, database.port), ("127.0.0.1", 9)):
            attempt = await sender.send(Delivery(f"http://{host}:{port}/", "id", b"{}", (b"s" * 32,)))
            assert attempt.outcome == "denied", attempt


async def test_a_proxy_of_the_environment_is_not_used(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """G102: a proxy would dial what the rules deny."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert (await send(pod.url)).outcome == "accepted"


@pytest.mark.parametrize("head_first", [True, False])
async def test_a_receiver_that_trickles(*, head_first: bool) -> None:
    """G101: its head has a time limit as a whole; a body that never ends changes nothing after an accepting head."""
    async with endless(head_first=head_first, seconds=0.02) as url:
        began = time.monotonic()
        attempt = await send(url)
    assert time.monotonic() - began < SOON.total_seconds() + BODY_SECONDS + 1
    assert attempt.outcome == ("failed" if head_first else "accepted")
    assert attempt.seconds < SOON.total_seconds() + 0.5


async def test_an_endless_body_is_not_read() -> None:
    """G101: of the body only the beginning is read, whatever its length."""
    async with endless(head_first=False, seconds=0) as url:
        began = time.monotonic()
        attempt = await send(url)
    assert attempt.outcome == "accepted"
    assert len(attempt.detail) == 200
    assert time.monotonic() - began < BODY_SECONDS
    assert BODY_MAX_BYTES < 10_000


async def test_receivers_that_do_not_answer() -> None:
    """Each is a failure with its reason, within the time limit."""
    async with silent_port() as port:
        silent = await send(f"http://127.0.0.1:{port}/")
    refused = await send("http://127.0.0.1:1/")
    unknown = await send("http://no-such-name.invalid/", webhook_timeout=timedelta(seconds=5))
    async with raw_pod(b"SSH-2.0\r\n\r\n") as other:
        garbage = await send(other.url)
    assert {each.outcome for each in (silent, refused, unknown, garbage)} == {"failed"}
    assert silent.detail.startswith("no answer within 0.5 s")
    assert refused.detail == "cannot connect (Connection refused)"
    assert unknown.detail == "its host's name cannot be resolved"
    assert garbage.detail.startswith("no valid answer")


async def test_an_answer_late_in_the_time_limit() -> None:
    """G101: a receiver has all of the time limit to answer, not a share of it."""
    limit = timedelta(seconds=1)

    async def late(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(limit.total_seconds() * 0.8)
        return web.Response()

    async with running_pod(late) as receiver:
        attempt = await send(receiver.url, webhook_timeout=limit)
    assert attempt.outcome == "accepted", attempt


async def test_a_receiver_that_accepts_no_connection() -> None:
    """It is a failure with its reason, well before the time limit."""
    with full_backlog() as url:
        attempt = await send(url, webhook_timeout=timedelta(seconds=1))
    assert (attempt.outcome, attempt.detail) == ("failed", "it does not accept a connection in time")
    assert attempt.seconds < 0.9


def test_what_is_kept_of_a_body() -> None:
    """The first 200 printable characters."""
    assert printable("a\x00\x1b[31mb\n\u202ec") == "a[31mbc"
    assert printable("é" * 300) == "é" * 200


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("9" * 400, None),
    ],
)
def test_what_a_receiver_may_ask(value: str | None, seconds: float | None) -> None:
    """Seconds, or a time; anything else is ignored."""
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert retry_after_of(value, datetime(2026, 1, 1, tzinfo=UTC)) == expected


@pytest_asyncio.fixture
async def pod() -> AsyncIterator[Pod]:
    """A receiver that accepts everything."""
    async with running_pod() as running:
        yield running
