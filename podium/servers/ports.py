"""Free TCP ports on loopback."""

import secrets
import socket
from collections.abc import Iterable

LOOPBACK = "127.0.0.1"

# Below the range that Linux uses for outgoing connections: such a connection on a server's port would prevent the
# server from binding it again after a restart. Above the ports of well-known services.
LOWEST, HIGHEST = 20_000, 31_999

ATTEMPTS = 200


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like the servers: TIME_WAIT does not count
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def free_ports(names: Iterable[str]) -> dict[str, int]:
    """A free port for each name. Ports are random, so that two starts at the same time rarely choose the same."""
    names = list(names)
    found: set[int] = set()
    for _ in range(ATTEMPTS):
        if len(found) == len(names):
            break
        port = LOWEST + secrets.randbelow(HIGHEST - LOWEST + 1)
        if is_free(port):
            found.add(port)
    return dict(zip(names, sorted(found), strict=True))
