"""Ports of our own on loopback."""

import secrets
import socket
from collections.abc import Iterable

LOOPBACK = "127.0.0.1"

# Below the range that Linux hands out to outgoing connections: one of those on our port would keep a restarted server
# from binding it. Above the ports that well-known services have.
LOWEST, HIGHEST = 20_000, 31_999

ATTEMPTS = 200


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT is no obstacle
        try:
            trial.bind((LOOPBACK, port))
            trial.listen(1)
        except OSError:
            return False
        return True


def free_ports(names: Iterable[str]) -> dict[str, int]:
    """A free port for each name, picked at random so that two starts at one time hardly meet."""
    wanted = list(names)
    found: set[int] = set()
    for _ in range(ATTEMPTS):
        if len(found) == len(wanted):
            break
        port = LOWEST + secrets.randbelow(HIGHEST - LOWEST + 1)
        if is_free(port):
            found.add(port)
    return dict(zip(wanted, sorted(found), strict=True))
