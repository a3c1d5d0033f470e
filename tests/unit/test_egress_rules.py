from ipaddress import ip_address
from typing import Any

import pytest

from services.egress import EgressRules
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


def rules(**settings: Any) -> EgressRules:
    """The egress rules of these settings."""
    return EgressRules.of(Settings.model_validate(settings))


def allows(egress: EgressRules, address: str, port: int = 8000) -> bool:
    """Whether the address may be dialled."""
    try:
        egress.check_endpoint(ip_address(address), port)
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
def test_private_addresses_are_allowed_by_default(host: str, allowed: list[str], denied: list[str]) -> None:
    """Loopback addresses are allowed only if the API itself listens on loopback only."""
    egress = rules(host=host)
    assert [each for each in allowed if not allows(egress, each)] == []
    assert [each for each in denied if allows(egress, each)] == []


@pytest.mark.parametrize("networks", ["", "0.0.0.0/0,::/0"])
def test_some_addresses_are_never_dialled(networks: str) -> None:
    """No setting allows link-local, metadata, unspecified, multicast, or embedded IPv4 addresses."""
    egress = rules(dial_networks=networks)
    assert [each for each in NEVER if allows(egress, each)] == []


def test_configured_networks_replace_the_default() -> None:
    """Only the listed networks are allowed; spaces in the list are ignored."""
    egress = rules(dial_networks="10.1.0.0/16, 2606:4700::/32")
    assert [each for each in ("10.1.2.3", "2606:4700::1") if not allows(egress, each)] == []
    assert [each for each in ("10.2.0.1", "127.0.0.1", "8.8.8.8") if allows(egress, each)] == []


def test_ports_limit_the_destination() -> None:
    """An empty list allows every port."""
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
def test_hosts_are_matched_by_suffix(suffixes: str, allowed: list[str], denied: list[str]) -> None:
    """Suffixes match whole labels, so they never match an IP address."""
    egress = rules(dial_hosts=suffixes)
    for host in allowed:
        egress.check_host(host)
    for host in denied:
        with pytest.raises(DestinationDenied):
            egress.check_host(host)


@pytest.mark.parametrize("name", ["dial_networks", "dial_ports"])
@pytest.mark.parametrize("value", ["10.0.0.7/8", "x", "0", "70000", "10.0.0.0/33"])
def test_invalid_lists_are_rejected(name: str, value: str) -> None:
    """The error names the setting."""
    with pytest.raises(ValueError, match=name):
        rules(**{name: value})
