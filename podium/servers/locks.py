"""One Podium per data directory, and never two servers on the same data."""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from podium.servers.errors import AlreadyRunning

# Held by Podium itself; the kernel lets go of it however Podium ends.
PODIUM_LOCK = "podium.lock"
# Inherited by the servers: after a hard kill of Podium it is held until they have shut down.
SERVERS_LOCK = "servers.lock"

SHUTDOWN_PATIENCE_SECONDS = 40.0  # more than the longest orderly shutdown of a server
POLL_SECONDS = 0.05


@contextlib.contextmanager
def only_podium(data_dir: Path) -> Iterator[None]:
    """Holds `data_dir` for this process.

    Raises:
        AlreadyRunning: another Podium holds it.
    """
    with (data_dir / PODIUM_LOCK).open("a+", encoding="utf-8") as lock:
        if not _locked(lock.fileno()):
            lock.seek(0)
            raise AlreadyRunning(f"Podium is already running in {data_dir} (pid {lock.read().strip() or 'unknown'}).")
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextlib.asynccontextmanager
async def only_servers(place: Path) -> AsyncIterator[int]:
    """Holds the servers' data; yields the descriptor that the servers have to inherit.

    Waits for servers that an earlier, killed Podium left shutting down.

    Raises:
        AlreadyRunning: they did not end.
    """
    with (place / SERVERS_LOCK).open("ab") as lock:
        deadline = time.monotonic() + SHUTDOWN_PATIENCE_SECONDS
        while not _locked(lock.fileno()):
            if time.monotonic() > deadline:
                raise AlreadyRunning(f"Servers of an earlier run still use {place}; try again when they have ended.")
            await asyncio.sleep(POLL_SECONDS)
        yield lock.fileno()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
