"""What kind of machine this is, as far as installing servers depends on it."""

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
DOCKER_PATIENCE_SECONDS = 3


@dataclass(frozen=True)
class Machine:
    """The facts that decide between installing, asking the owner, and pointing at Docker."""

    distribution: str
    """`ID` of os-release, e.g. `debian`; empty where there is none."""
    version: tuple[int, ...]
    """`VERSION_ID` of os-release; empty for rolling releases."""
    name: str
    """How the system calls itself."""
    is_root: bool
    has_apt: bool
    python_can_make_environments: bool
    """Debian's python3 cannot until `python3-venv` is installed."""

    @property
    def packages_are_known(self) -> bool:
        """Whether the distribution's own packages are known to be right for Podium."""
        oldest = OLDEST_RELEASES.get(self.distribution)
        return self.has_apt and oldest is not None and self.version >= oldest


def this_machine(os_release: Path = OS_RELEASE) -> Machine:
    """Looks at the machine that this runs on."""
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
    """The assignments of an os-release file, unquoted; nothing where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): "".join(shlex.split(value)[:1]) for name, value in pairs}


def docker_answers(environ: Mapping[str, str]) -> bool:
    """Whether a Docker engine answers at DOCKER_HOST or at the usual socket (a client alone starts no server)."""
    scheme, _, rest = (environ.get("DOCKER_HOST") or DOCKER_SOCKET).partition("://")
    try:
        with _connect_docker(scheme, rest) as connected:
            return _ping(connected)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _connect_docker(scheme: str, rest: str) -> socket.socket:
    if scheme == "unix":
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(DOCKER_PATIENCE_SECONDS)
        try:
            connected.connect(rest)
        except OSError:
            connected.close()
            raise
        return connected
    host, _, port = rest.rstrip("/").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=DOCKER_PATIENCE_SECONDS)


def _ping(connected: socket.socket) -> bool:
    connected.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
    answer = http.client.HTTPResponse(connected)
    try:
        answer.begin()
        return answer.status == http.HTTPStatus.OK
    finally:
        answer.close()


def _numbers(version: str) -> tuple[int, ...]:
    """`24.04` -> (24, 4)."""
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
