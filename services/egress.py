"""Connections to agents: each address is checked as it is dialled, literal or resolved, so that no name can rebind."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from services.egress_rules import Address, Destinations
from services.errors import DestinationDenied
from services.settings import Settings

# Names whose lookup hangs must not hold up those of other agents.
LOOKUPS_AT_ONCE = 32
# Podium's own servers move at a failover.
OWN_SERVERS_EVERY = timedelta(seconds=30)
_POSTGRESQL_PORT = 5432
_AMQP_PORTS = {"amqp": 5672, "amqps": 5671}

Server = tuple[str, int]


class Denied(OSError):
    """How a connector learns that an address may not be dialled; it goes on to the next one of the name."""


class OwnServers:
    """Where PostgreSQL, the broker and the API are: no agent is there, whatever it says."""

    def __init__(self, *servers: Server) -> None:
        self._addresses: dict[Server, set[Address] | None] = {server: _literal(server[0]) for server in servers}

    async def look_up(self, resolver: "Resolver") -> None:
        """Find the addresses of those that have names; what cannot be found now stays as it was."""
        for host, port in [server for server in self._addresses if _literal(server[0]) is None]:
            with suppress(OSError):
                found = await resolver.resolve(host, port)
                self._addresses[host, port] = {ip_address(each["host"]) for each in found}

    def check(self, address: Address, port: int) -> None:
        """Raise `DestinationDenied` if one of them is there; until its name is known, anything at its port may be."""
        for (_, own_port), addresses in self._addresses.items():
            if port == own_port and (addresses is None or _reaches(address, addresses)):
                raise DestinationDenied


class Resolver(AbstractResolver):
    """The system's resolver, on threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of the name. Raises `OSError`, also for what is no name at all."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, _lookup, host, port, family)
        except UnicodeError as exc:
            raise OSError(f"no host name: {host}") from exc
        return [
            ResolveResult(hostname=host, host=address, port=port, family=each, proto=0, flags=socket.AI_NUMERICHOST)
            for each, address in found
        ]

    async def close(self) -> None:
        """Take no more names."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def open_connector(
    settings: Settings,
    *own: Server,
    **options: Any,  # noqa: ANN401 - what the connector takes
) -> AsyncGenerator[aiohttp.TCPConnector, None]:
    """A connector that dials nothing but what the settings allow, and none of Podium's own servers.

    A request to anywhere else ends in a `ClientConnectorError` whose `os_error` is `Denied`.
    """
    destinations, servers, resolver = Destinations.of(settings), OwnServers(*own, *_servers(settings)), Resolver()

    def checked_socket(info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        address, port = ip_address(str(sockaddr[0])), int(sockaddr[1])
        try:
            destinations.check_endpoint(address, port)
            servers.check(address, port)
        except DestinationDenied as exc:
            raise Denied(exc.message) from exc
        return socket.socket(family, kind, protocol)

    async def keep_looking() -> None:
        while True:
            await servers.look_up(resolver)
            await asyncio.sleep(OWN_SERVERS_EVERY.total_seconds())

    looking = asyncio.create_task(keep_looking())
    connector = aiohttp.TCPConnector(resolver=resolver, socket_factory=checked_socket, **options)
    try:
        yield connector
    finally:
        looking.cancel()
        await asyncio.wait((looking,))
        await connector.close()
        await resolver.close()


def _servers(settings: Settings) -> Iterator[Server]:
    """PostgreSQL and the broker, as far as the settings name them."""
    with suppress(ArgumentError):
        database = make_url(settings.database_url.get_secret_value())
        yield database.host or "localhost", database.port or _POSTGRESQL_PORT
    broker = urlsplit(settings.amqp_url.get_secret_value())
    if broker.hostname:
        yield broker.hostname, broker.port or _AMQP_PORTS.get(broker.scheme, 0)


def _lookup(host: str, port: int, family: socket.AddressFamily) -> list[tuple[socket.AddressFamily, str]]:
    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    return [(each, str(sockaddr[0])) for each, _, _, _, sockaddr in found]


def _literal(host: str) -> set[Address] | None:
    """The address that the host is written as; None for a name."""
    try:
        return {ip_address(host)}
    except ValueError:
        return None


def _reaches(address: Address, own: set[Address]) -> bool:
    """Whether dialling the address ends at a server at one of `own`; one of this machine mostly listens everywhere."""
    return address in own or (_is_of_this_machine(address) and any(_is_of_this_machine(each) for each in own))


def _is_of_this_machine(address: Address) -> bool:
    """Whether the address is one of this machine's own: nobody else's can be bound to."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - the version of IP
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
