"""Set-up from a bare checkout: `python3 podium/bootstrap.py`, standard library only.

Makes `.venv` from the lock file and makes sure that PostgreSQL and RabbitMQ can be had. Run again it does nothing,
quickly. Exit codes: 0 done, 1 failed, 2 the owner of the machine has to do something first (the message says what).
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this file is run by whatever python3 the machine has
    sys.stderr.write(f"Podium needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12\n")
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
    # A script's own folder is first on the path, where our modules would hide others of the same name.
    sys.path[0] = str(ROOT)

from podium import environment
from podium.servers import apt
from podium.servers.errors import InstallFailed, ServersError
from podium.servers.install import PACKAGES, VENV_PACKAGE, Purpose, missing_servers, obtain
from podium.servers.machine import docker_answers, this_machine


def main() -> int:
    """Sets up what the command line asks for; the result is the exit code."""
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
        print("\nInterrupted; run it again to go on.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def set_up(purpose: Purpose) -> None:
    """Servers first: whoever has to ask the machine's owner should learn it at once, and everything in one go."""
    obtain(lambda: lacking(purpose), this_machine(), say)
    environment.make(ROOT, say)


def lacking(purpose: Purpose) -> list[str]:
    """All that has to be installed before the rest of the set-up can succeed."""
    servers = missing_servers(os.environ, purpose, lambda: docker_answers(os.environ))
    if environment.is_current(ROOT) or this_machine().python_can_make_environments:
        return servers
    return [VENV_PACKAGE, *servers]


def install_only(packages: Sequence[str]) -> None:
    """What an ordinary user is told to run as root."""
    machine = this_machine()
    if not (machine.is_root and machine.packages_are_known):
        raise InstallFailed("--install needs root on Debian 12 or newer, or Ubuntu 24.04 or newer.")
    apt.install(packages, say)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Waits for another set-up of this checkout; the lock is on this very file, so nothing is left behind."""
    with Path(__file__).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up of this checkout is running; waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(line: str) -> None:
    """One line of progress, at once."""
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
        help=f"as root: only install these ({', '.join(PACKAGES)}), no service started or enabled",
    )
    return parser.parse_args()


def _end(number: int, _frame: FrameType | None) -> None:
    """Ends as an exception, so that everything changed for the time of an installation is put back."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
