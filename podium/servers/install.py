"""Which server packages are missing, and their installation: by apt as root, else by a command for the user to run."""

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
CHROMIUM_PACKAGE = "chromium"
PACKAGES = (VENV_PACKAGE, POSTGRES_PACKAGE, RABBITMQ_PACKAGE, CHROMIUM_PACKAGE)

BOOTSTRAP = Path(__file__).resolve().parent.parent / "bootstrap.py"

Say = Callable[[str], None]
Install = Callable[[Sequence[str], Say], None]


class Purpose(enum.Enum):
    """What PostgreSQL and RabbitMQ are needed for."""

    RUN = "run"
    """`podium up` and the demo: private servers, from programs installed on this machine."""
    TEST = "test"
    """The tests, which use containers instead of an installation if Docker runs."""
    NONE = "none"
    """Nothing: only the Python environment is needed."""


def ensure_servers(purpose: Purpose, say: Say, environ: Mapping[str, str] = os.environ) -> None:
    """Installs the servers that `purpose` needs and that are missing. Quick when nothing is missing.

    Raises:
        ServersMissing: a person has to install them; the message says how.
        InstallFailed: the installation failed, or the servers are still missing after it.
    """
    install_missing(lambda: missing_servers(environ, purpose, lambda: docker_answers(environ)), this_machine(), say)


def missing_servers(environ: Mapping[str, str], purpose: Purpose, docker: Callable[[], bool]) -> list[str]:
    """The packages that `purpose` needs and that are missing; calls `docker` only if some are missing."""
    missing = []
    if purpose is not Purpose.NONE:
        if not environ.get(DATABASE_URL) and find_postgres(environ) is None:
            missing.append(POSTGRES_PACKAGE)
        if not environ.get(AMQP_URL) and find_rabbitmq(environ) is None:
            missing.append(RABBITMQ_PACKAGE)
    return [] if purpose is Purpose.TEST and missing and docker() else missing


def install_missing(
    missing: Callable[[], Sequence[str]], machine: Machine, say: Say, install: Install = apt.install
) -> None:
    """Installs the `missing` packages if this process is root on a distribution with known packages.

    Raises:
        ServersMissing: otherwise; the message contains the command to run, or the programs to install.
        InstallFailed: the package manager failed, or packages are still missing after it.
    """
    packages = missing()
    if not packages:
        return
    if not machine.packages_are_known:
        raise ServersMissing(what_to_install(packages, machine))
    if not machine.is_root:
        raise ServersMissing(command_to_run(packages))
    say(f"Missing on this machine: {', '.join(packages)}. Installing them; no service is started or enabled.")
    install(packages, say)
    importlib.invalidate_caches()  # python3-venv has installed new modules
    still_missing = missing()
    if still_missing:
        raise InstallFailed(f"Installed, but still not usable: {', '.join(still_missing)}.")


def command_to_run(packages: Sequence[str]) -> str:
    """The message for an ordinary user, with the one command to run. Podium never runs sudo itself."""
    command = shlex.join(["sudo", "python3", "-B", str(BOOTSTRAP), "--install", *packages])
    return (
        f"Podium needs {_and(packages)}. Run this command once, then repeat your command:\n\n    {command}\n\n"
        "It installs packages of your distribution. It starts and enables no service. "
        f"Or set {DATABASE_URL} and {AMQP_URL} to the addresses of existing servers."
    )


def what_to_install(packages: Sequence[str], machine: Machine) -> str:
    """The message for systems with unknown packages: the programs to install, and the ways without installation."""
    programs = {
        VENV_PACKAGE: "a Python with a working `venv` (its ensurepip is missing)",
        POSTGRES_PACKAGE: f"PostgreSQL {OLDEST_POSTGRES} or newer (`postgres` and `initdb` on PATH)",
        RABBITMQ_PACKAGE: "RabbitMQ 3.10 or newer (`rabbitmq-server` and Erlang's `erl` on PATH)",
        CHROMIUM_PACKAGE: "Chromium (`chromium` on PATH), in which the tests open the console",
    }
    return (
        f"Podium does not know the packages of {machine.name}. Install {_and([programs[name] for name in packages])}, "
        f"or set {DATABASE_URL} and {AMQP_URL} to the addresses of existing servers, or run: docker compose up"
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
