"""A small process between Podium and one server. It makes sure that the server ends when Podium ends.

The guard reads a pipe from Podium. When Podium ends for any reason, SIGKILL included, the pipe closes. The guard then
stops the server and kills all processes below itself. It runs as a script, with the standard library alone, in its own
session, so that Ctrl-C at the terminal reaches only Podium. On Linux it is a subreaper: processes of the server that
detach from their parent become its children.

Input: one JSON line, the plan, then lines `stop` or `kill`. Output: JSON lines `{"pid": ...}`, then `{"ended": code}`,
or `{"error": text}`. The server also inherits the file descriptors in the plan's `keep_open`: a lock among them stays
held until the last process of the server has ended.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

# From <sys/prctl.h>.
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

CLEAN_UP_SECONDS = 5.0
CLEAN_UP_POLL_SECONDS = 0.02
PPID_FIELD = 1  # in /proc/PID/stat, counted from the field after the name

LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None


class Guard:
    """Runs the server and its helpers, and ends them."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.spawned: list[int] = []
        self.codes: dict[int, int] = {}
        self.order = ""
        self.unread = b""
        self.wakeup, writing = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _wake_up)  # not SIG_IGN, which the server would inherit
        signal.signal(signal.SIGTERM, self._stop_on_signal)

    def run(self) -> int:
        """Runs the server until it ends by itself or on request; returns its exit code."""
        for command in self.plan["helpers"]:
            self._spawn(command)
        server = self._spawn(self.plan["server"])
        _send(pid=server)
        self._wait(server, None, lambda: bool(self.order))
        for number, seconds in self.plan["stop"]:
            if server in self.codes:
                break
            if self.order != "kill" or number == signal.SIGKILL:
                _signal(server, number)
                _signal(server, signal.SIGCONT)  # a process under SIGSTOP handles no other signal
                self._wait(server, seconds, self._is_killing if number != signal.SIGKILL else _never)
        self._kill_remaining()
        return self.codes.get(server, -signal.SIGKILL)

    def _spawn(self, command: dict[str, Any]) -> int:
        account = self.plan["account"]
        dropped = {"user": account["uid"], "group": account["gid"], "extra_groups": []} if account else {}
        process = subprocess.Popen(
            command["argv"],
            env=command["env"],
            cwd=command["cwd"],
            stdin=subprocess.PIPE if command["input"] else subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            stderr=sys.stderr.fileno(),
            pass_fds=self.plan["keep_open"],
            start_new_session=True,
            umask=0o077,
            preexec_fn=_die_with_guard(command["if_orphaned"]),  # noqa: PLW1509 - the guard has no threads
            **dropped,
        )
        if process.stdin is not None:
            process.stdin.write(command["input"].encode())
            process.stdin.close()
        process.returncode = 0  # _reap collects the exit code, together with all others
        self.spawned.append(process.pid)
        return process.pid

    def _wait(self, server: int, seconds: float | None, is_enough: Callable[[], bool]) -> None:
        """Returns when the server has ended, the time is over, or `is_enough` is true."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            self._reap()
            left = None if deadline is None else deadline - time.monotonic()
            if server in self.codes or is_enough() or (left is not None and left <= 0):
                return
            reads_orders = self.order in {"", "stop"}
            ready = self._sleep(left, [sys.stdin.fileno()] if reads_orders else [])
            if sys.stdin.fileno() in ready:
                self._read_order()

    def _sleep(self, seconds: float | None, inputs: list[int]) -> list[int]:
        """Waits for input, a signal or the end of the time; returns the `inputs` that can be read."""
        ready, _, _ = select.select([self.wakeup, *inputs], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self.wakeup, 1024)
        return ready

    def _read_order(self) -> None:
        read = os.read(sys.stdin.fileno(), 1024)
        self.unread += read
        *lines, self.unread = self.unread.split(b"\n")
        if b"kill" in lines:
            self.order = "kill"
        elif b"stop" in lines:
            self.order = "stop"
        elif not read:
            self.order = "orphaned"

    def _is_killing(self) -> bool:
        return self.order == "kill"

    def _stop_on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.order = self.order or "stop"

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])

    def _kill_remaining(self) -> None:
        """Kills every process that the server or a helper has left."""
        deadline = time.monotonic() + CLEAN_UP_SECONDS
        while time.monotonic() < deadline:
            self._reap()
            remaining = _descendants(os.getpid()) | {pid for pid in self.spawned if pid not in self.codes}
            if not remaining:
                return
            for pid in remaining:
                _signal(pid, signal.SIGKILL)
            self._sleep(CLEAN_UP_POLL_SECONDS, [])


def _descendants(ancestor: int) -> set[int]:
    """All processes below `ancestor` without zombies; empty on systems without /proc."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(stat.parent.name)] = int(fields[PPID_FIELD])
    below: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in {ancestor, *below}} - below:
        below |= more
    return below


def _die_with_guard(number: int) -> Callable[[], None]:
    """Makes the kernel send signal `number` to the new process if this guard is killed.

    A change of user clears this setting. `preexec_fn` runs after that change.
    """
    guard = os.getpid()

    def configure() -> None:
        if LIBC is not None:
            LIBC.prctl(PR_SET_PDEATHSIG, number)
            if os.getppid() != guard:
                os._exit(1)

    return configure


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _never() -> bool:
    return False


def _wake_up(_number: int, _frame: FrameType | None) -> None:
    """The signal only has to interrupt `select`."""


def _send(**message: object) -> None:
    """Writes one JSON line to Podium."""
    with contextlib.suppress(OSError):  # Podium has ended
        os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


def _read_plan() -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(sys.stdin.fileno(), 1)  # byte by byte, to leave the orders after the plan unread
        if not read:
            sys.exit(1)
        line += read
    plan: dict[str, Any] = json.loads(line)
    return plan


if __name__ == "__main__":
    if LIBC is not None:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        _send(ended=Guard(_read_plan()).run())
    except (OSError, subprocess.SubprocessError) as error:
        _send(error=str(error))
