"""Which addresses may be dialled: agents' addresses were registered by somebody less trusted than Podium.

Only addresses as they are dialled are judged, after the name was resolved: a name proves nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from services.errors import DestinationDenied
from services.settings import Settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOOPBACK: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
PRIVATE: tuple[Network, ...] = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("100.64.0.0/10"),  # shared address space (RFC 6598), which clusters give to pods
    IPv6Network("fc00::/7"),
)
# No setting allows these: nothing there is an agent, and some of it hands out credentials to whoever asks.
NEVER: tuple[Network, ...] = (
    IPv4Network("0.0.0.0/8"),
    IPv4Network("169.254.0.0/16"),  # link-local, with most clouds' metadata
    IPv4Network("100.100.100.200/32"),  # metadata of Alibaba Cloud
    IPv4Network("168.63.129.16/32"),  # of Azure
    IPv4Network("192.0.0.192/32"),  # of Oracle Cloud
    IPv4Network("224.0.0.0/4"),  # multicast
    IPv4Network("240.0.0.0/4"),  # reserved, and broadcast
    IPv6Network("fe80::/10"),
    IPv6Network("fec0::/10"),
    IPv6Network("fd00:ec2::254/128"),  # metadata of AWS
    IPv6Network("fd20:ce::254/128"),  # of Google Cloud
    IPv6Network("ff00::/8"),
    # An IPv4 address in disguise, which the rules for IPv4 would not see: mapped, translated, tunnelled, compatible.
    IPv6Network("::ffff:0:0/96"),
    IPv6Network("::ffff:0:0:0/96"),
    IPv6Network("64:ff9b::/96"),
    IPv6Network("64:ff9b:1::/48"),
    IPv6Network("2001::/32"),
    IPv6Network("2002::/16"),
    *IPv6Network("::/96").address_exclude(IPv6Network("::1/128")),
)


@dataclass(frozen=True, slots=True)
class Destinations:
    """The rules. All three lists must allow a destination; `hosts` and `ports` allow everything while empty."""

    networks: tuple[Network, ...]
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> "Destinations":
        """The rules that the settings make: private addresses, and loopback for who is reached by loopback alone."""
        default = (*PRIVATE, *LOOPBACK) if settings.on_loopback else PRIVATE
        hosts = tuple(each.lower().rstrip(".") for each in settings.dial_hosts)
        return cls(settings.dial_networks or default, hosts, settings.dial_ports)

    def check_host(self, host: str) -> None:
        """Raise `DestinationDenied` unless the host ends as it must; `a.b` allows itself, too, `.a.b` what is below."""
        name = host.lower().rstrip(".")
        if self.hosts and not any(name == each or name.endswith(f".{each.lstrip('.')}") for each in self.hosts):
            raise DestinationDenied

    def check_endpoint(self, address: Address, port: int) -> None:
        """Raise `DestinationDenied` unless this may be dialled."""
        if _is_in(address, NEVER) or not _is_in(address, self.networks):
            raise DestinationDenied
        if self.ports and port not in self.ports:
            raise DestinationDenied


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
