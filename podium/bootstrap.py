"""Sets up a fresh checkout: `python3 podium/bootstrap.py`, with the standard library alone.

Creates `.venv` from the lock file, and checks that PostgreSQL and RabbitMQ are available or installs them. Quick when
nothing is to do. Exit codes: 0 done, 1 failed, 2 a person has to act first (the message says what).
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - any python3 of the machine may run this file
    sys.stderr.write(
        f"Podium needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12\n"
    )
    sys.exit(2)

import argparse
import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    # Python puts the folder of a script first on the path: modules in it would hide others of the same name.
    sys.path[0] = str(ROOT)

from podium import environment
from podium.servers import apt
from podium.servers.binaries import find_chromium
from podium.servers.errors import InstallFailed, ServersError
from podium.servers.install import CHROMIUM_PACKAGE, PACKAGES, VENV_PACKAGE, Purpose, install_missing, missing_servers
from podium.servers.machine import docker_answers, this_machine


def main() -> int:
    """Runs the set-up with the options of the command line; returns the exit code."""
    options = _options()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        with one_at_a_time():
            if options.install:
                install_only(options.install)
            else:
                set_up(Purpose(options.servers))
    except (ServersError, environment.EnvironmentFailed) as error:
        print(f"\n{error}\n", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted. Run the command again to continue.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def set_up(purpose: Purpose) -> None:
    """Servers first: a user who must install something gets the message at once, with everything in one command."""
    install_missing(lambda: missing_packages(purpose), this_machine(), say)
    environment.make(ROOT, say)


def missing_packages(purpose: Purpose) -> list[str]:
    """The packages that the rest of the set-up needs and that are missing."""
    servers = missing_servers(os.environ, purpose, lambda: docker_answers(os.environ))
    if purpose is Purpose.TEST and find_chromium(os.environ) is None:
        servers = [*servers, CHROMIUM_PACKAGE]
    if environment.is_current(ROOT) or this_machine().python_can_make_environments:
        return servers
    return [VENV_PACKAGE, *servers]


def install_only(packages: Sequence[str]) -> None:
    """Installs `packages` and nothing else: the command that an ordinary user runs with sudo."""
    machine = this_machine()
    if not (machine.is_root and machine.packages_are_known):
        raise InstallFailed("--install needs root on Debian 12 or newer, or Ubuntu 24.04 or newer.")
    apt.install(packages, say)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Waits for another set-up of this checkout. The lock is on this file itself, so no lock file remains."""
    with Path(__file__).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up of this checkout is running; waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(line: str) -> None:
    """Prints one line of progress without buffering."""
    print(f"[setup] {line}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Set up Podium in this checkout.")
    parser.add_argument(
        "--servers",
        choices=[purpose.value for purpose in Purpose],
        default=Purpose.RUN.value,
        help="what PostgreSQL and RabbitMQ are needed for (default: run)",
    )
    parser.add_argument(
        "--install",
        nargs="+",
        choices=PACKAGES,
        metavar="PACKAGE",
        help=f"as root: only install these packages ({', '.join(PACKAGES)}); no service is started or enabled",
    )
    return parser.parse_args()


def _end(number: int, _frame: FrameType | None) -> None:
    """Raises SystemExit, so that `finally` blocks undo the temporary changes of an installation."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
