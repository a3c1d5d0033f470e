from ipaddress import ip_address
from typing import Any

import pytest

from services.egress_rules import Destinations
from services.errors import DestinationDenied
from services.settings import Settings

NEVER = [
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "0.1.2.3",
    "169.254.169.254",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.7",
    "::ffff:0:10.0.0.7",
    "::10.0.0.7",
    "::2",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2001:0:1::1",
    "2002:a9fe:a9fe::1",
]
PRIVATE = ["10.0.0.7", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fd00::7"]
LOOPBACK = ["127.0.0.1", "127.8.9.10", "::1"]
PUBLIC = ["8.8.8.8", "172.32.0.1", "2606:4700::1"]


def rules(**settings: Any) -> Destinations:
    """What these settings allow."""
    return Destinations.of(Settings.model_validate(settings))


def allows(destinations: Destinations, address: str, port: int = 8000) -> bool:
    """Whether the address may be dialled."""
    try:
        destinations.check_endpoint(ip_address(address), port)
    except DestinationDenied:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "allowed", "denied"),
    [
        ("127.0.0.1", [*PRIVATE, *LOOPBACK], PUBLIC),
        ("localhost", [*PRIVATE, *LOOPBACK], PUBLIC),
        ("", PRIVATE, [*LOOPBACK, *PUBLIC]),
        ("10.0.0.1", PRIVATE, [*LOOPBACK, *PUBLIC]),
    ],
)
def test_what_is_allowed_by_default(host: str, allowed: list[str], denied: list[str]) -> None:
    """Pods live on private addresses; on loopback only where whoever calls does too."""
    destinations = rules(host=host)
    assert [each for each in allowed if not allows(destinations, each)] == []
    assert [each for each in denied if allows(destinations, each)] == []


@pytest.mark.parametrize("networks", ["", "0.0.0.0/0,::/0"])
def test_some_addresses_are_never_dialled(networks: str) -> None:
    """Whatever the settings say: link-local, metadata, unspecified, multicast, and IPv4 in any disguise."""
    destinations = rules(dial_networks=networks)
    assert [each for each in NEVER if allows(destinations, each)] == []


def test_networks_take_the_place_of_the_default() -> None:
    """Only what is listed, with or without blanks."""
    destinations = rules(dial_networks="10.1.0.0/16, 2606:4700::/32")
    assert [each for each in ("10.1.2.3", "2606:4700::1") if not allows(destinations, each)] == []
    assert [each for each in ("10.2.0.1", "127.0.0.1", "8.8.8.8") if allows(destinations, each)] == []


def test_ports() -> None:
    """Any where none is listed."""
    assert allows(rules(), "10.0.0.7", 1)
    assert allows(rules(dial_ports="80, 8000"), "10.0.0.7", 8000)
    assert not allows(rules(dial_ports="80, 8000"), "10.0.0.7", 8001)


@pytest.mark.parametrize(
    ("suffixes", "allowed", "denied"),
    [
        ("", ["bot", "10.0.0.7", "::1", "a.b.c"], []),
        (
            ".internal",
            ["a.internal", "A.B.INTERNAL.", "a.internal."],
            ["internal", "ainternal", "a.internal.evil", "10.0.0.7"],
        ),
        ("example.com", ["example.com", "a.example.com"], ["badexample.com", "com"]),
        (".a,.b", ["x.a", "x.b"], ["x.c"]),
    ],
)
def test_hosts(suffixes: str, allowed: list[str], denied: list[str]) -> None:
    """Whole labels from the right; a literal address ends in none of them."""
    destinations = rules(dial_hosts=suffixes)
    for host in allowed:
        destinations.check_host(host)
    for host in denied:
        with pytest.raises(DestinationDenied):
            destinations.check_host(host)


@pytest.mark.parametrize("name", ["dial_networks", "dial_ports"])
@pytest.mark.parametrize("value", ["10.0.0.7/8", "x", "0", "70000", "10.0.0.0/33"])
def test_lists_that_are_not_valid(name: str, value: str) -> None:
    """Podium does not start with a rule that it would not keep."""
    with pytest.raises(ValueError, match=name):
        rules(**{name: value})
