"""Making sure that servers can be had: what is set, found, offered by Docker, installed, or asked of the owner."""

import enum
import importlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from podium.servers import apt
from podium.servers.binaries import OLDEST_POSTGRES, find_postgres, find_rabbitmq
from podium.servers.errors import InstallFailed, ServersMissing
from podium.servers.machine import Machine, docker_answers, this_machine

DATABASE_URL = "PODIUM_DATABASE_URL"
AMQP_URL = "PODIUM_AMQP_URL"

VENV_PACKAGE = "python3-venv"
POSTGRES_PACKAGE = "postgresql"
RABBITMQ_PACKAGE = "rabbitmq-server"
PACKAGES = (VENV_PACKAGE, POSTGRES_PACKAGE, RABBITMQ_PACKAGE)

BOOTSTRAP = Path(__file__).resolve().parent.parent / "bootstrap.py"

Say = Callable[[str], None]
Install = Callable[[Sequence[str], Say], None]


class Purpose(enum.Enum):
    """What the servers are for."""

    RUN = "run"
    """`podium up` and the demo: private servers of this machine's programs."""
    TEST = "test"
    """The tests, which prefer containers to installing."""
    NONE = "none"
    """Only the Python environment is wanted."""


def ensure_servers(purpose: Purpose, say: Say, environ: Mapping[str, str] = os.environ) -> None:
    """After this, `purpose` has its servers; installs them where that is ours to do. Quick when nothing is missing.

    Raises:
        ServersMissing: the owner of the machine has to act; end with its `exit_code` (2) and its message.
        InstallFailed: the installation failed, or did not bring what it should.
    """
    obtain(lambda: missing_servers(environ, purpose, lambda: docker_answers(environ)), this_machine(), say)


def missing_servers(environ: Mapping[str, str], purpose: Purpose, docker: Callable[[], bool]) -> list[str]:
    """The packages that `purpose` still needs; asks Docker only if something is missing."""
    missing = []
    if purpose is not Purpose.NONE:
        if not environ.get(DATABASE_URL) and find_postgres(environ) is None:
            missing.append(POSTGRES_PACKAGE)
        if not environ.get(AMQP_URL) and find_rabbitmq(environ) is None:
            missing.append(RABBITMQ_PACKAGE)
    return [] if purpose is Purpose.TEST and missing and docker() else missing


def obtain(lacking: Callable[[], Sequence[str]], machine: Machine, say: Say, install: Install = apt.install) -> None:
    """Installs what is `lacking` where that is ours to do: as root, on a distribution whose packages we know.

    Raises:
        ServersMissing: it is not; the message is the exact command, or what to install.
        InstallFailed: the package manager failed, or something is lacking still.
    """
    packages = lacking()
    if not packages:
        return
    if not machine.packages_are_known:
        raise ServersMissing(what_to_install(packages, machine))
    if not machine.is_root:
        raise ServersMissing(command_to_run(packages))
    say(f"Not on this machine yet: {', '.join(packages)}. Installing; no service is started or enabled.")
    install(packages, say)
    importlib.invalidate_caches()  # the modules that python3-venv brought
    still = lacking()
    if still:
        raise InstallFailed(f"Installed, but still not usable: {', '.join(still)}.")


def command_to_run(packages: Sequence[str]) -> str:
    """The one command that gives an ordinary user what is missing; Podium never calls sudo by itself."""
    command = shlex.join(["sudo", "python3", "-B", str(BOOTSTRAP), "--install", *packages])
    return (
        f"Podium needs {_and(packages)}. Run this once, then repeat what you did:\n\n    {command}\n\n"
        "It installs the packages of your distribution and leaves no service running or enabled. "
        f"Or set {DATABASE_URL} and {AMQP_URL} to servers that you have."
    )


def what_to_install(packages: Sequence[str], machine: Machine) -> str:
    """For systems whose packages are not known: what has to be there, and the way without installing anything."""
    wanted = {
        VENV_PACKAGE: "a Python whose `venv` works (its ensurepip is missing)",
        POSTGRES_PACKAGE: f"PostgreSQL {OLDEST_POSTGRES} or newer (`postgres` and `initdb` on PATH)",
        RABBITMQ_PACKAGE: "RabbitMQ 3.10 or newer (`rabbitmq-server` and Erlang's `erl` on PATH)",
    }
    return (
        f"Podium does not know the packages of {machine.name}. Install {_and([wanted[name] for name in packages])}, "
        f"or set {DATABASE_URL} and {AMQP_URL} to servers that you have, or run: docker compose up"
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
