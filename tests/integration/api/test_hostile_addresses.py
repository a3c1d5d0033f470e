"""Addresses under which a pod could try to have Podium reach what it must not: by calls, cards and probes."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from pydantic import SecretStr
from sqlalchemy.engine import make_url
from yarl import URL

from services.egress import Resolver
from services.health.prober import open_prober
from services.settings import Settings
from tests.integration.api.client import Api
from tests.integration.api.conftest import Serve
from tests.integration.api.pods import Pod, running_pod

EVERYTHING = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
ONLY_PRIVATE = (IPv4Network("10.0.0.0/8"),)
TIME_LIMIT = timedelta(seconds=5)
# What a denied address leads to: it is not dialled, or it is no address for the resolver.
NOT_DIALLED = {"destination-denied", "agent-unreachable"}
METADATA = ("169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
NEVER = ("[fd00:ec2::254]", "[fd20:ce::254]", "0.0.0.0", "0", "[::]", "255.255.255.255", "224.0.0.1", "[ff02::1]")  # noqa: S104 - addresses to refuse

Dialled = set[tuple[str, int]]


def spellings(address: str) -> Iterator[str]:
    """Hosts that mean this IPv4 address, or lead to it through a translator."""
    number = int(IPv4Address(address))
    first, rest = number >> 24, number & 0xFFFFFF
    high, low = number >> 16, number & 0xFFFF
    yield from (
        address,
        f"{address}.",
        f"{number}",
        f"{number:#x}",
        f"0{number:o}",
        f"{first}.{rest}",
        f"{first:#x}.{rest:#x}",
        ".".join(f"0{part:o}" for part in number.to_bytes(4)),
        ".".join(f"{part:#x}" for part in number.to_bytes(4)),
        ".".join(f"{part:03d}" for part in number.to_bytes(4)),
    )
    teredo = ~number & 0xFFFFFFFF
    for prefix in ("::ffff:", "::", "::ffff:0:", "64:ff9b::", "64:ff9b:1::"):
        yield f"[{prefix}{address}]"
        yield f"[{prefix}{high:x}:{low:x}]"
    yield f"[{IPv6Address(f'::ffff:{address}').exploded}]"
    yield f"[2002:{high:x}:{low:x}::]"
    yield f"[2002:{high:x}:{low:x}::{address}]"
    yield f"[2001:0:{high:x}:{low:x}::1]"
    yield f"[2001:0:1::{teredo >> 16:x}:{teredo & 0xFFFF:x}]"
    yield f"[fe80::5efe:{address}]"


NAMES_OF_THIS_MACHINE = (
    "localhost",
    "LocalHost",
    "localhost.",
    "localhost.localdomain",
    "ip6-localhost",
    "[::1]",
    "[::]",
)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> Dialled:
    """The addresses to which this process has opened connections."""
    seen: Dialled = set()
    original = asyncio.selector_events.BaseSelectorEventLoop.sock_connect

    async def recording(loop: Any, sock: socket.socket, address: Any) -> None:
        seen.add((str(ip_address(address[0])), address[1]))
        await original(loop, sock, address)

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", recording)
    return seen


async def ask(api: Api, settings: Settings, host: str, port: int) -> None:
    """Register an agent at this host; call it, read its card and probe it. Nothing of that works."""
    name = f"bot-{uuid4().hex[:8]}"
    address = f"http://{host}:{port}"
    await api.register(name, acp_url=address)
    called, card = await api.post(f"/agents/name/{name}/rpc", {"id": 1}), await card_of(api, name)
    assert (called.status, card.status) == (502, 502), (host, called.body, card.body)
    assert called.json["error"]["data"]["reason"] in NOT_DIALLED, (host, called.body)
    assert card.json["type"].removeprefix("urn:podium:problem:") in NOT_DIALLED, (host, card.body)
    async with open_prober(settings) as prober:
        assert (await prober.probe(f"{address}/healthz", uuid4(), TIME_LIMIT)).kind != "answered"


async def ask_all(api: Api, settings: Settings, hosts: Iterable[str], port: int) -> None:
    """Ask for each of these hosts."""
    await asyncio.gather(*(ask(api, settings, host, port) for host in hosts))


async def card_of(api: Api, name: str) -> Any:
    """The answer to a request for an agent's card."""
    return await api.get(f"/agents/name/{name}/.well-known/agent-card.json")


@pytest.mark.parametrize("ports", [(), (1,)])
async def test_no_spelling_of_a_denied_address_is_dialled(
    serve: Serve, settings: Settings, pod: Pod, dialled: Dialled, ports: tuple[int, ...]
) -> None:
    """G92: by calls, cards and probes, whether the network or the port is not on its list."""
    port = URL(pod.url).port
    assert port is not None
    lists = {"dial_networks": EVERYTHING, "dial_ports": ports} if ports else {"dial_networks": ONLY_PRIVATE}
    api = await serve(**lists)
    await ask_all(api, settings.model_copy(update=lists), (*spellings("127.0.0.1"), *NAMES_OF_THIS_MACHINE), port)
    assert not pod.seen
    assert port not in {each for _, each in dialled}


async def test_no_spelling_of_a_metadata_service_is_dialled(serve: Serve, settings: Settings, dialled: Dialled) -> None:
    """G92: not even if every network is allowed."""
    lists = {"dial_networks": EVERYTHING}
    api = await serve(**lists)
    hosts = [host for address in METADATA for host in spellings(address)]
    await ask_all(api, settings.model_copy(update=lists), [*hosts, *NEVER], 80)
    assert 80 not in {port for _, port in dialled}


@pytest.mark.parametrize("lists", [{}, {"dial_networks": EVERYTHING}])
async def test_no_spelling_of_podium_s_own_servers_is_dialled(
    serve: Serve, settings: Settings, lists: dict[str, Any]
) -> None:
    """G92: neither PostgreSQL nor RabbitMQ nor the API, whatever the lists allow."""
    api = await serve(**lists)
    database = make_url(settings.database_url.get_secret_value())
    broker = URL(settings.amqp_url.get_secret_value())
    changed = settings.model_copy(update={**lists, "port": api.host_and_port[1]})
    others = ("127.0.0.2", "127.255.255.254", socket.gethostname())
    for port in (database.port, broker.port):
        assert port is not None
        await ask_all(api, changed, (*spellings("127.0.0.1"), *NAMES_OF_THIS_MACHINE, *others), port)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://podium@/podium?host=127.0.0.1&port={port}",
        "postgresql://podium@/podium?host=127.0.0.1:{port}",
        "postgresql://podium@/podium?host=10.255.0.1:1&host=127.0.0.1:{port}",
        "postgresql://podium@/podium?host=10.255.0.1,127.0.0.1&port=1,{port}",
    ],
)
async def test_servers_in_the_query_of_the_database_url_are_podium_s_own(
    pod: Pod, settings: Settings, url: str
) -> None:
    """G92: a URL can name its servers there, also several of them."""
    address = SecretStr(url.format(port=URL(pod.url).port))
    async with open_prober(settings.model_copy(update={"database_url": address})) as prober:
        outcome = await prober.probe(f"{pod.url}/healthz", uuid4(), TIME_LIMIT)
    assert outcome.kind == "unknown"
    assert not pod.seen


@asynccontextmanager
async def canary(host: str, port: int) -> AsyncIterator[list[object]]:
    """A listener that must not be reached; the connections that it got."""
    reached: list[object] = []

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(writer.get_extra_info("peername"))
        writer.close()

    async with await asyncio.start_server(accept, host, port):
        yield reached


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(serve: Serve, settings: Settings, status: int) -> None:
    """G92: of a call, a card or a probe: neither to a denied address nor to an allowed one."""
    async with running_pod() as elsewhere:

        async def redirect(_: web.BaseRequest) -> web.StreamResponse:
            return web.Response(
                status=status, headers={"location": f"{elsewhere.url}/x", "refresh": f"0; {elsewhere.url}"}
            )

        async with running_pod(redirect) as pod:
            api = await serve()
            await api.register("bot", acp_url=pod.url)
            (await api.post("/agents/name/bot/rpc", {"id": 1}, allow_redirects=False)).rpc_error(
                502, "agent-redirects", sent=True
            )
            assert (await card_of(api, "bot")).status == 502
            async with open_prober(settings) as prober:
                assert (await prober.probe(f"{pod.url}/healthz", uuid4(), TIME_LIMIT)).kind == "failed"
        assert len(pod.seen) == 3
        assert not elsewhere.seen


@pytest.mark.parametrize(
    "answers",
    [
        [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]],
        [["127.0.0.2", "127.0.0.1"]],
        [["127.0.0.1", "127.0.0.2"]],
        [["::ffff:127.0.0.2", "127.0.0.1"]],
    ],
)
async def test_what_is_dialled_is_what_was_checked(
    serve: Serve, pod: Pod, monkeypatch: pytest.MonkeyPatch, answers: list[list[str]]
) -> None:
    """G92: if a name has several addresses, or others the second time, only allowed ones are dialled."""
    port = URL(pod.url).port
    assert port is not None
    asked = iter(answers)
    latest = answers[0]

    async def rebinding(_: Resolver, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        nonlocal latest
        del family
        latest = next(asked, latest)
        return [
            {
                "hostname": host,
                "host": each,
                "port": port,
                "family": socket.AF_INET6 if ":" in each else socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for each in latest
        ]

    monkeypatch.setattr(Resolver, "resolve", rebinding)
    api = await serve(dial_networks=(IPv4Network("127.0.0.1/32"),))
    await api.register("bot", acp_url=f"http://rebinding.test:{port}")
    async with canary("127.0.0.2", port) as reached:
        for _ in range(3):
            assert (await api.post("/agents/name/bot/rpc", {"id": 1})).status in {200, 502}
        assert pod.seen
    assert not reached
