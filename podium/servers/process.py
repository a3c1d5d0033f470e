"""Programs that run below a guard process (`guard.py`): they end on request, and whenever this process ends."""

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

from podium.servers.accounts import Account

GUARD = Path(__file__).with_name("guard.py")

KILL_TIMEOUT_SECONDS = 10.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Command:
    """One program to start. Its environment is exactly `env`: it inherits no variable of this process."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    if_orphaned: signal.Signals = signal.SIGKILL
    """The signal that the kernel sends if the guard itself is killed (Linux only)."""
    input: str = ""
    """The text on its standard input."""


@dataclass(frozen=True)
class Launch:
    """A server, the helper programs that it needs, and the signals that stop it, each with its timeout in seconds."""

    server: Command
    helpers: Sequence[Command] = ()
    stop: Sequence[tuple[signal.Signals, float]] = ((signal.SIGTERM, 10), (signal.SIGKILL, 5))


@dataclass(frozen=True)
class ProcessContext:
    """How a program runs: as which account, with which log and which inherited locks."""

    account: Account | None
    """None for the account of this process."""
    log: Path
    """The file that standard output and standard error are appended to."""
    keep_open: Sequence[int] = field(default=())
    """File descriptors (locks) that the program inherits."""


class GuardedProcess:
    """A running program. `code` is its exit code; None until it, its helpers and all their descendants have ended."""

    def __init__(self, guard: asyncio.subprocess.Process, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self._guard = guard
        self._watch_task = asyncio.create_task(self._watch(), name=f"watch the guard of {pid}")

    async def ended(self) -> int:
        """Waits for the end; returns the exit code, negative for a signal."""
        return await asyncio.shield(self._watch_task)

    async def stop(self) -> None:
        """Shuts the server down with its stop signals; returns when all its processes have ended."""
        await self._send("stop")

    async def kill(self) -> None:
        """Sends SIGKILL at once, as in a power cut; returns when all processes have ended."""
        await self._send("kill")

    async def _send(self, order: str) -> None:
        assert self._guard.stdin is not None
        if self.code is None:
            with contextlib.suppress(OSError):  # the guard ends at this moment
                self._guard.stdin.write(f"{order}\n".encode())
                await self._guard.stdin.drain()
        await self.ended()

    async def _watch(self) -> int:
        message = await _read_message(self._guard)
        await self._guard.wait()
        if "ended" not in message:
            await self._kill_without_guard()
        self.code = int(message.get("ended", -signal.SIGKILL))
        return self.code

    async def _kill_without_guard(self) -> None:
        """The guard was killed. Its server must end before another one starts on the same data."""
        deadline = time.monotonic() + KILL_TIMEOUT_SECONDS
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline and not _is_zombie(self.pid):
                os.kill(self.pid, signal.SIGKILL)
                await asyncio.sleep(POLL_SECONDS)


async def start(launch: Launch, context: ProcessContext) -> GuardedProcess:
    """Starts a program below its own guard.

    Raises:
        OSError: the program could not be started.
    """
    plan = {
        "server": _as_json(launch.server),
        "helpers": [_as_json(helper) for helper in launch.helpers],
        "stop": list(launch.stop),
        "account": {"uid": context.account.uid, "gid": context.account.gid} if context.account else None,
        "keep_open": list(context.keep_open),
    }
    with context.log.open("ab") as log:
        guard = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",  # the environment and the working directory must not decide what is imported
            "-S",  # the standard library is enough; without site packages the guard starts in 20 ms
            str(GUARD),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd="/",
            pass_fds=tuple(context.keep_open),
            start_new_session=True,
        )
    assert guard.stdin is not None
    guard.stdin.write(json.dumps(plan).encode() + b"\n")
    try:
        message = await _read_message(guard)
    except asyncio.CancelledError:
        guard.stdin.close()  # the guard then acts as if this process had ended
        await guard.wait()
        raise
    if "pid" not in message:
        await guard.wait()
        raise OSError(message.get("error", "the guard process ended"))
    return GuardedProcess(guard, int(message["pid"]))


async def run(command: Command, context: ProcessContext) -> int:
    """Runs a program to its end below a guard; returns the exit code."""
    process = await start(Launch(command, stop=((signal.SIGTERM, 3), (signal.SIGKILL, 5))), context)
    try:
        return await process.ended()
    except asyncio.CancelledError:
        await process.stop()
        raise


async def _read_message(guard: asyncio.subprocess.Process) -> dict[str, Any]:
    assert guard.stdout is not None
    line = await guard.stdout.readline()
    return json.loads(line) if line else {}


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended but its parent has not read the exit code, which may take long."""
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
