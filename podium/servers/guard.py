"""A small process that stands between Podium and one server, so that the server never outlives Podium.

It holds a pipe from Podium. Whatever ends Podium, a SIGKILL included, closes the pipe, and then the server is shut
down in order and everything below it is gone. It runs as a script of its own, standard library only, in a session of
its own (a terminal's Ctrl-C reaches Podium alone). As a subreaper it adopts what daemonises itself (Linux).

In: one JSON line, the plan, then lines `stop` or `kill`. Out: JSON lines `{"pid": ...}`, then `{"ended": code}`, or
`{"error": text}`. The server also inherits the descriptors that the plan names in `keep_open`: a lock among them stays
held until the last process of the server is gone.
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

SWEEP_SECONDS = 5.0
SWEEP_POLL_SECONDS = 0.02
PPID_FIELD = 1  # in /proc/PID/stat, counted after the name in parentheses

LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None


class Guard:
    """The server and its helpers, by their process ids."""

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
            signal.signal(number, _nothing)  # a handler, not SIG_IGN: that would be inherited by the server
        signal.signal(signal.SIGTERM, self._stop_on_signal)

    def run(self) -> int:
        """Runs the server until it ends, by itself or by order; the result is its exit code."""
        for command in self.plan["helpers"]:
            self._spawn(command)
        server = self._spawn(self.plan["server"])
        _tell(pid=server)
        self._wait(server, None, lambda: bool(self.order))
        for number, seconds in self.plan["stop"]:
            if server in self.codes:
                break
            if self.order != "kill" or number == signal.SIGKILL:
                _signal(server, number)
                _signal(server, signal.SIGCONT)  # a stopped process hears nothing else
                self._wait(server, seconds, self._must_kill if number != signal.SIGKILL else _never)
        self._sweep()
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
            preexec_fn=_dies_with_us(command["if_orphaned"]),  # noqa: PLW1509 - the guard has no threads
            **dropped,
        )
        if process.stdin is not None:
            process.stdin.write(command["input"].encode())
            process.stdin.close()
        process.returncode = 0  # reaped below, among all the others
        self.spawned.append(process.pid)
        return process.pid

    def _wait(self, server: int, seconds: float | None, enough: Callable[[], bool]) -> None:
        """Until the server ended, the time is over, or what was read from Podium is `enough`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            self._reap()
            left = None if deadline is None else deadline - time.monotonic()
            if server in self.codes or enough() or (left is not None and left <= 0):
                return
            may_hear_more = self.order in {"", "stop"}
            ready = self._sleep(left, [sys.stdin.fileno()] if may_hear_more else [])
            if sys.stdin.fileno() in ready:
                self._listen()

    def _sleep(self, seconds: float | None, listening: list[int]) -> list[int]:
        """Until one of `listening` can be read (those are the result), a signal came, or the time is over."""
        ready, _, _ = select.select([self.wakeup, *listening], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self.wakeup, 1024)
        return ready

    def _listen(self) -> None:
        read = os.read(sys.stdin.fileno(), 1024)
        self.unread += read
        *lines, self.unread = self.unread.split(b"\n")
        if b"kill" in lines:
            self.order = "kill"
        elif b"stop" in lines:
            self.order = "stop"
        elif not read:
            self.order = "orphaned"

    def _must_kill(self) -> bool:
        return self.order == "kill"

    def _stop_on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.order = self.order or "stop"

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])

    def _sweep(self) -> None:
        """Nothing that the server or a helper left behind stays."""
        deadline = time.monotonic() + SWEEP_SECONDS
        while time.monotonic() < deadline:
            self._reap()
            remaining = _descendants(os.getpid()) | {pid for pid in self.spawned if pid not in self.codes}
            if not remaining:
                return
            for pid in remaining:
                _signal(pid, signal.SIGKILL)
            self._sleep(SWEEP_POLL_SECONDS, [])


def _descendants(ancestor: int) -> set[int]:
    """All processes below `ancestor`, zombies left out; empty where there is no /proc."""
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


def _dies_with_us(number: int) -> Callable[[], None]:
    """The second line of defence: the kernel sends `number` if this guard itself is killed.

    It has to be asked for after the change of user, which clears it; that is when `preexec_fn` runs.
    """
    guard = os.getpid()

    def ask() -> None:
        if LIBC is not None:
            LIBC.prctl(PR_SET_PDEATHSIG, number)
            if os.getppid() != guard:
                os._exit(1)

    return ask


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _never() -> bool:
    return False


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Only wakes up the waiting."""


def _tell(**message: object) -> None:
    """Podium may be gone: then nobody has to know."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


def _read_plan() -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(sys.stdin.fileno(), 1)  # byte by byte: what follows the plan is not ours to swallow
        if not read:
            sys.exit(1)
        line += read
    plan: dict[str, Any] = json.loads(line)
    return plan


if __name__ == "__main__":
    if LIBC is not None:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        _tell(ended=Guard(_read_plan()).run())
    except (OSError, subprocess.SubprocessError) as error:
        _tell(error=str(error))
