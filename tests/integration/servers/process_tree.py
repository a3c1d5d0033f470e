"""Processes and their sockets, read from /proc."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from podium.servers import PrivateServer

TIMEOUT_SECONDS = 30.0
LISTEN = "0A"
GUARD = "guard"


async def until(happened: Callable[[], bool], what: str) -> None:
    """Polls until it has happened; fails after TIMEOUT_SECONDS."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"not within {TIMEOUT_SECONDS:.0f} s: {what}"
        await asyncio.sleep(0.02)


def below(ancestor: int) -> dict[int, str]:
    """The running processes below `ancestor`, without zombies: their ids and names."""
    found: dict[int, tuple[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, fields = stat.read_text(errors="replace").partition("(")[2].rpartition(")")
            state, parent = fields.split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = (int(parent), name)
    tree = {ancestor}
    while more := {pid for pid, (parent, _) in found.items() if parent in tree} - tree:
        tree |= more
    return {pid: found[pid][1] for pid in tree - {ancestor}}


def tree(server: PrivateServer | None) -> dict[int, str]:
    """All processes of a private server: its guard and the processes below it."""
    assert server is not None
    assert server.pid is not None
    guard = int(Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[1])
    return {guard: GUARD, **below(guard)}


def alive(pids: Iterable[int]) -> set[int]:
    """Those of `pids` that still run, without zombies."""
    running = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z":
                running.add(pid)
    return running


def owners(pids: Iterable[int]) -> set[int]:
    """The user ids of `pids`; processes that have ended are left out."""
    found = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            found.add(Path(f"/proc/{pid}").stat().st_uid)
    return found


def listening(pids: Iterable[int]) -> dict[str, set[str]]:
    """The addresses on which `pids` accept TCP connections, as in /proc/net/tcp and /proc/net/tcp6."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    inodes.add(target[len("socket:[") : -1])
    return {table: _listening_in(table, inodes) for table in ("tcp", "tcp6")}


def _listening_in(table: str, inodes: set[str]) -> set[str]:
    rows = [row.split() for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == LISTEN and row[9] in inodes}


def is_root() -> bool:
    """Whether this process can switch accounts."""
    return os.geteuid() == 0
