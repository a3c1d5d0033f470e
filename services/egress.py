"""Outbound connections to agents and webhooks: which addresses may be dialled, the resolver, and the connector.

The addresses come from registrations and from callers, which Podium does not trust. Each IP address is checked when it
is dialled, after name resolution, so DNS rebinding cannot bypass the rules.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from services.cancellation import background_task
from services.connections import CleanConnector
from services.errors import DestinationDenied
from services.settings import Settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Server = tuple[str, int]

LOOPBACK: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
PRIVATE: tuple[Network, ...] = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("100.64.0.0/10"),  # shared address space (RFC 6598); some clusters use it for pods
    IPv6Network("fc00::/7"),
)
# No setting can allow these. No agent runs there, and cloud metadata services hand out credentials to any client.
NEVER: tuple[Network, ...] = (
    IPv4Network("0.0.0.0/8"),
    IPv4Network("169.254.0.0/16"),  # link-local; includes the metadata service of most clouds
    IPv4Network("100.100.100.200/32"),  # metadata service of Alibaba Cloud
    IPv4Network("168.63.129.16/32"),  # metadata service of Azure
    IPv4Network("192.0.0.192/32"),  # metadata service of Oracle Cloud
    IPv4Network("224.0.0.0/4"),  # multicast
    IPv4Network("240.0.0.0/4"),  # reserved; includes broadcast
    IPv6Network("fe80::/10"),
    IPv6Network("fec0::/10"),
    IPv6Network("fd00:ec2::254/128"),  # metadata service of AWS
    IPv6Network("fd20:ce::254/128"),  # metadata service of Google Cloud
    IPv6Network("ff00::/8"),
    # IPv6 addresses that embed an IPv4 address, which the IPv4 rules would miss: mapped, translated, Teredo, 6to4, etc.
    IPv6Network("::ffff:0:0/96"),
    IPv6Network("::ffff:0:0:0/96"),
    IPv6Network("64:ff9b::/96"),
    IPv6Network("64:ff9b:1::/48"),
    IPv6Network("2001::/32"),
    IPv6Network("2002::/16"),
    *IPv6Network("::/96").address_exclude(IPv6Network("::1/128")),
)

EVERYTHING: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

# What a receiver on the internet does not have: the addresses above, and those for documentation, tests and protocols
# (the IANA registries of special-purpose addresses; of IPv6 only 2000::/3 is global unicast).
NOT_PUBLIC: tuple[Network, ...] = (
    *LOOPBACK,
    *PRIVATE,
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.0.2.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv4Network("198.18.0.0/15"),
    IPv4Network("198.51.100.0/24"),
    IPv4Network("203.0.113.0/24"),
    *IPv6Network("::/0").address_exclude(IPv6Network("2000::/3")),
    IPv6Network("2001::/23"),
    IPv6Network("2001:db8::/32"),
    IPv6Network("3fff::/20"),
)

# A slow lookup of one agent's host must not delay the lookups of other agents.
MAX_CONCURRENT_LOOKUPS = 32
# The addresses of PostgreSQL and RabbitMQ change on a failover.
OWN_SERVERS_REFRESH = timedelta(seconds=30)
_POSTGRESQL_PORT = 5432
_AMQP_PORTS = {"amqp": 5672, "amqps": 5671}


class Denied(OSError):
    """The connector may not dial this address. aiohttp then tries the next address of the same name."""


@dataclass(frozen=True, slots=True)
class EgressRules:
    """The allow lists. All three must allow a destination; empty `hosts` or `ports` allow every host or port.

    A network `/0` allows all addresses but those in `denied`, which other networks can allow.
    """

    networks: tuple[Network, ...]
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    denied: tuple[Network, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> "EgressRules":
        """The rules from the settings. Default: private networks, plus loopback if the API listens on loopback only."""
        default = (*PRIVATE, *LOOPBACK) if settings.on_loopback else PRIVATE
        return cls(settings.dial_networks or default, _suffixes(settings.dial_hosts), settings.dial_ports)

    @classmethod
    def of_webhooks(cls, settings: Settings) -> "EgressRules":
        """The rules for receivers of webhooks from the settings. Default, and the meaning of `/0`: public ones."""
        return cls(
            settings.webhook_dial_networks or EVERYTHING,
            _suffixes(settings.webhook_dial_hosts),
            settings.webhook_dial_ports,
            NOT_PUBLIC,
        )

    def check_host(self, host: str) -> None:
        """Raise `DestinationDenied` unless a suffix in `hosts` allows it: `a.b` includes `a.b`, `.a.b` does not."""
        name = host.lower().rstrip(".")
        if self.hosts and not any(name == each or name.endswith(f".{each.lstrip('.')}") for each in self.hosts):
            raise DestinationDenied

    def check_endpoint(self, address: Address, port: int) -> None:
        """Raise `DestinationDenied` unless this IP address and port may be dialled."""
        named = (network for network in self.networks if network.prefixlen)
        allowed = _is_in(address, named) or (_is_in(address, self.networks) and not _is_in(address, self.denied))
        if _is_in(address, NEVER) or not allowed:
            raise DestinationDenied
        if self.ports and port not in self.ports:
            raise DestinationDenied


class OwnServers:
    """The endpoints of PostgreSQL, RabbitMQ and the API, which no agent address may point to."""

    def __init__(self, *servers: Server) -> None:
        self._addresses: dict[Server, set[Address] | None] = {server: _literal(server[0]) for server in servers}

    async def look_up(self, resolver: "Resolver") -> None:
        """Resolve the servers that are given by name. If a lookup fails, the addresses found earlier stay in use."""
        for host, port in [server for server in self._addresses if _literal(server[0]) is None]:
            with suppress(OSError):
                found = await resolver.resolve(host, port)
                self._addresses[host, port] = {ip_address(each["host"]) for each in found}

    def check(self, address: Address, port: int) -> None:
        """Raise `DestinationDenied` if this is one of Podium's own servers.

        While a server's name is unresolved, every address is denied at its port.
        """
        for (_, own_port), addresses in self._addresses.items():
            if port == own_port and (addresses is None or _reaches(address, addresses)):
                raise DestinationDenied


class Resolver(AbstractResolver):
    """The system resolver on a dedicated thread pool."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT_LOOKUPS, thread_name_prefix="lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The IP addresses of the host. Raises `OSError` if the lookup fails or the name is malformed."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, _lookup, host, port, family)
        except UnicodeError as exc:
            raise OSError(f"malformed host name: {host}") from exc
        return [
            ResolveResult(hostname=host, host=address, port=port, family=each, proto=0, flags=socket.AI_NUMERICHOST)
            for each, address in found
        ]

    async def close(self) -> None:
        """Cancel queued lookups and accept no new ones."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def open_connector(
    settings: Settings,
    *own: Server,
    rules: EgressRules | None = None,
    **options: Any,  # noqa: ANN401 - the options of aiohttp's connector
) -> AsyncGenerator[CleanConnector, None]:
    """A connector that dials only addresses that the rules allow, and none of Podium's own servers.

    The rules are by default those for agents. `own` lists servers beyond those in the settings. A request to a denied
    address raises `ClientConnectorError` whose `os_error` is `Denied`.
    """
    rules = EgressRules.of(settings) if rules is None else rules
    servers, resolver = OwnServers(*own, *_servers(settings)), Resolver()

    def checked_socket(info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        address, port = ip_address(str(sockaddr[0])), int(sockaddr[1])
        try:
            rules.check_endpoint(address, port)
            servers.check(address, port)
        except DestinationDenied as exc:
            raise Denied(exc.message) from exc
        return socket.socket(family, kind, protocol)

    async def refresh_own_servers() -> None:
        while True:
            await servers.look_up(resolver)
            await asyncio.sleep(OWN_SERVERS_REFRESH.total_seconds())

    connector = CleanConnector(resolver=resolver, socket_factory=checked_socket, **options)
    try:
        async with background_task(refresh_own_servers(), name="own servers"):
            yield connector
    finally:
        await connector.close()
        await resolver.close()


def _servers(settings: Settings) -> Iterator[Server]:
    """PostgreSQL and RabbitMQ, if their URLs in the settings can be parsed."""
    with suppress(ArgumentError):
        yield from _database_servers(make_url(settings.database_url.get_secret_value()))
    broker = urlsplit(settings.amqp_url.get_secret_value())
    if broker.scheme:
        yield broker.hostname or "localhost", broker.port or _AMQP_PORTS.get(broker.scheme, 0)


def _database_servers(url: URL) -> Iterator[Server]:
    """The servers that the driver connects to: those in the authority of the URL, or in its query."""
    url = url.set(drivername="postgresql+asyncpg")
    _, options = url.get_dialect()().create_connect_args(url)
    hosts, ports = options.get("host", "localhost"), options.get("port")
    for position, host in enumerate([hosts] if isinstance(hosts, str) else hosts):
        port = ports[position] if isinstance(ports, list) else ports
        # A path is that of a socket file.
        if not host.startswith("/"):
            yield host, port or _POSTGRESQL_PORT


def _lookup(host: str, port: int, family: socket.AddressFamily) -> list[tuple[socket.AddressFamily, str]]:
    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    return [(each, str(sockaddr[0])) for each, _, _, _, sockaddr in found]


def _literal(host: str) -> set[Address] | None:
    """The host as a set of one IP address; None if it is a name."""
    try:
        return {ip_address(host)}
    except ValueError:
        return None


def _reaches(address: Address, own: set[Address]) -> bool:
    """Whether `address` reaches a server at one of `own`; a local server may listen on every local address."""
    return address in own or (_is_local(address) and any(_is_local(each) for each in own))


def _is_local(address: Address) -> bool:
    """Whether the address belongs to this machine: only local addresses can be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - the IP version
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _suffixes(hosts: Iterable[str]) -> tuple[str, ...]:
    return tuple(each.lower().rstrip(".") for each in hosts)


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
