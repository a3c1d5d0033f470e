"""Podium's programs as forks of one process (`program_template.py`), which saves each the time of its imports."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from podium.servers.process import Command, GuardedProcess, Launch, _as_json

ROOT = Path(__file__).parent.parent.parent
PODIUM = [sys.executable, "-m", "podium"]
# Variables of a program that must be a new process: for tests of its memory, or of what /proc says of it.
NEW_PROCESS = {"TESTS_NEW_PROCESS": "1"}


class _Guard:
    """What `GuardedProcess` needs of the guard, which is no child of this process."""

    def __init__(self, stdout: asyncio.StreamReader, stdin: asyncio.StreamWriter) -> None:
        self.stdout, self.stdin = stdout, stdin

    async def wait(self) -> None:
        """Return when it has ended."""
        await self.stdout.read()
        self.stdin.close()


class ForkedPrograms:
    """Programs of Podium for the tests of one process."""

    def __init__(self) -> None:
        self._started: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._python = _of_python(os.environ)

    def can_start(self, command: Command) -> bool:
        """Whether a fork will do: for a program of Podium, with the same path of Python, that need not be new."""
        is_podium = list(command.argv[:3]) == PODIUM
        return is_podium and _of_python(command.env) == self._python and not NEW_PROCESS.keys() & command.env.keys()

    async def start(self, command: Command, log: Path) -> GuardedProcess:
        """Starts a program below its own guard, as `podium.servers.process.start` does."""
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            socket.send_fds(self._template(), [b"."], [theirs.fileno(), output.fileno()])
        guard = _Guard(*await asyncio.open_unix_connection(sock=ours))
        launch = Launch(command)
        plan = {"server": _as_json(launch.server), "helpers": [], "stop": launch.stop, "account": None, "keep_open": []}
        guard.stdin.write(json.dumps(plan).encode() + b"\n")
        started: dict[str, Any] = json.loads(await guard.stdout.readline())
        return GuardedProcess(cast("Process", guard), started["pid"])

    def close(self) -> None:
        """End the process that forks."""
        if self._started is not None:
            process, requests = self._started
            requests.close()
            process.wait()

    def _template(self) -> socket.socket:
        """The socket to the process that forks, which is started when it is needed first."""
        if self._started is None:
            ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, "-m", "tests.support.program_template", str(theirs.fileno())]
                template = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            self._started = template, ours
        return self._started[1]


@contextmanager
def forked_programs() -> Iterator[ForkedPrograms]:
    """Forked programs while inside."""
    programs = ForkedPrograms()
    try:
        yield programs
    finally:
        programs.close()


def _of_python(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith("PYTHON")}
