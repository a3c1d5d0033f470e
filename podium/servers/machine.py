"""The machine: its distribution, its rights and tools for an installation, and whether Docker runs."""

import http.client
import importlib.util
import os
import shlex
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OS_RELEASE = Path("/etc/os-release")

# The oldest releases whose own packages are new enough: Python 3.11, PostgreSQL 14, RabbitMQ 3.10.
OLDEST_RELEASES = {"debian": (12,), "ubuntu": (24, 4)}

DOCKER_SOCKET = "unix:///var/run/docker.sock"
DOCKER_TIMEOUT_SECONDS = 3


@dataclass(frozen=True)
class Machine:
    """The facts that decide whether packages are installed, or which message the user gets instead."""

    distribution: str
    """`ID` of os-release, such as `debian`; empty if there is none."""
    version: tuple[int, ...]
    """`VERSION_ID` of os-release, such as (24, 4); empty for rolling releases."""
    name: str
    """The name of the system, for messages."""
    is_root: bool
    has_apt: bool
    python_can_make_environments: bool
    """Debian's python3 needs the package `python3-venv` for this."""

    @property
    def packages_are_known(self) -> bool:
        """Whether the packages of this distribution are known to work with Podium."""
        oldest = OLDEST_RELEASES.get(self.distribution)
        return self.has_apt and oldest is not None and self.version >= oldest


def this_machine(os_release: Path = OS_RELEASE) -> Machine:
    """The facts about the machine that runs this process."""
    facts = read_os_release(os_release)
    return Machine(
        distribution=facts.get("ID", ""),
        version=_numbers(facts.get("VERSION_ID", "")),
        name=facts.get("PRETTY_NAME", os.uname().sysname),
        is_root=os.geteuid() == 0,
        has_apt=shutil.which("apt-get") is not None,
        python_can_make_environments=importlib.util.find_spec("ensurepip") is not None,
    )


def read_os_release(path: Path) -> dict[str, str]:
    """The variables of an os-release file, without quotes; empty if there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): "".join(shlex.split(value)[:1]) for name, value in pairs}


def docker_answers(environ: Mapping[str, str]) -> bool:
    """Whether a Docker engine answers at DOCKER_HOST, else at the default socket. An installed client is not enough."""
    scheme, _, address = (environ.get("DOCKER_HOST") or DOCKER_SOCKET).partition("://")
    try:
        with _connect_docker(scheme, address) as connected:
            return _ping(connected)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _connect_docker(scheme: str, address: str) -> socket.socket:
    if scheme == "unix":
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(DOCKER_TIMEOUT_SECONDS)
        try:
            connected.connect(address)
        except OSError:
            connected.close()
            raise
        return connected
    host, _, port = address.rstrip("/").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=DOCKER_TIMEOUT_SECONDS)


def _ping(connected: socket.socket) -> bool:
    connected.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
    response = http.client.HTTPResponse(connected)
    try:
        response.begin()
        return response.status == http.HTTPStatus.OK
    finally:
        response.close()


def _numbers(version: str) -> tuple[int, ...]:
    """`24.04` -> (24, 4)."""
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
