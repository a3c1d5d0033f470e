"""A program that runs below a guard: it ends when it is told to, and when we end in whatever way."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from podium.servers.unprivileged import Account

GUARD = Path(__file__).with_name("guard.py")

UNGUARDED_SECONDS = 10.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Command:
    """One program to start. Its environment is exactly `env`: nothing of ours leaks in."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    if_orphaned: signal.Signals = signal.SIGKILL
    """What the kernel sends if the guard itself is killed (Linux)."""
    input: str = ""


@dataclass(frozen=True)
class Launch:
    """A server, what has to run beside it, and how it is asked to end: signals, each with its patience in seconds."""

    server: Command
    helpers: Sequence[Command] = ()
    stop: Sequence[tuple[signal.Signals, float]] = ((signal.SIGTERM, 10), (signal.SIGKILL, 5))


@dataclass(frozen=True)
class Surroundings:
    """What all programs of one data directory share."""

    account: Account | None
    """Whom to run as; None is ourselves."""
    log: Path
    keep_open: Sequence[int] = field(default=())
    """Descriptors (locks) that the programs inherit."""


class GuardedProcess:
    """A running server. `code` is None until it, its helpers and all its descendants are gone."""

    def __init__(self, guard: asyncio.subprocess.Process, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self._guard = guard
        self._watching = asyncio.create_task(self._watch(), name=f"watch the guard of {pid}")

    async def ended(self) -> int:
        """Waits for the end; the exit code, negative for a signal."""
        return await asyncio.shield(self._watching)

    async def stop(self) -> None:
        """Shuts the server down in order; returns when nothing of it is left."""
        await self._order("stop")

    async def kill(self) -> None:
        """SIGKILL at once, as in a power cut; returns when nothing of it is left."""
        await self._order("kill")

    async def _order(self, order: str) -> None:
        assert self._guard.stdin is not None
        if self.code is None:
            with contextlib.suppress(OSError):  # ends at this very moment
                self._guard.stdin.write(f"{order}\n".encode())
                await self._guard.stdin.drain()
        await self.ended()

    async def _watch(self) -> int:
        message = await _hear(self._guard)
        await self._guard.wait()
        if "ended" not in message:
            await self._end_unguarded()
        self.code = int(message.get("ended", -signal.SIGKILL))
        return self.code

    async def _end_unguarded(self) -> None:
        """The guard itself was killed. Its server must be gone before anybody starts another on the same data."""
        deadline = time.monotonic() + UNGUARDED_SECONDS
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline and not _is_zombie(self.pid):
                os.kill(self.pid, signal.SIGKILL)
                await asyncio.sleep(POLL_SECONDS)


async def start(launch: Launch, around: Surroundings) -> GuardedProcess:
    """Starts a server below a guard of its own.

    Raises:
        OSError: the program could not be started.
    """
    plan = {
        "server": _as_json(launch.server),
        "helpers": [_as_json(helper) for helper in launch.helpers],
        "stop": list(launch.stop),
        "account": {"uid": around.account.uid, "gid": around.account.gid} if around.account else None,
        "keep_open": list(around.keep_open),
    }
    with around.log.open("ab") as log:
        guard = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",  # neither the caller's environment nor its folder decides what is imported
            "-S",  # the standard library is enough: starts in 20 ms
            str(GUARD),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd="/",
            pass_fds=tuple(around.keep_open),
            start_new_session=True,
        )
    assert guard.stdin is not None
    guard.stdin.write(json.dumps(plan).encode() + b"\n")
    try:
        first = await _hear(guard)
    except asyncio.CancelledError:
        guard.stdin.close()  # for the guard we are gone now
        await guard.wait()
        raise
    if "pid" not in first:
        await guard.wait()
        raise OSError(first.get("error", "the guard process ended"))
    return GuardedProcess(guard, int(first["pid"]))


async def run(command: Command, around: Surroundings) -> int:
    """Runs a program to its end; the exit code. It does not outlive us either."""
    process = await start(Launch(command, stop=((signal.SIGTERM, 3), (signal.SIGKILL, 5))), around)
    try:
        return await process.ended()
    except asyncio.CancelledError:
        await process.stop()
        raise


async def _hear(guard: asyncio.subprocess.Process) -> dict[str, Any]:
    assert guard.stdout is not None
    line = await guard.stdout.readline()
    return json.loads(line) if line else {}


def _is_zombie(pid: int) -> bool:
    """Gone but for its entry, which whoever adopted it may take long to read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"


def _as_json(command: Command) -> dict[str, object]:
    return {
        "argv": list(command.argv),
        "env": dict(command.env),
        "cwd": str(command.cwd),
        "if_orphaned": command.if_orphaned,
        "input": command.input,
    }
