"""A data directory: its locks, the ports and passwords saved in it, and the folder with the servers' data."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from podium.servers.accounts import Account, account_for, can_enter, change_owner
from podium.servers.errors import AlreadyRunning, ServersError

# Held by Podium itself; the kernel releases it however Podium ends.
PODIUM_LOCK = "podium.lock"
# Inherited by the servers: after Podium is killed, it stays held until the servers have shut down.
SERVERS_LOCK = "servers.lock"
SHUTDOWN_TIMEOUT_SECONDS = 40.0  # longer than the slowest orderly shutdown of a server
POLL_SECONDS = 0.05

STATE_FILE = "servers.json"
PASSWORD_BYTES = 24

# Used if the servers' accounts cannot enter the data directory.
FALLBACK_DIR = Path("/var/lib/podium")
FALLBACK_NOTE = "servers"
IN_DATA_DIR = "."
TRAVERSABLE = 0o711


@contextlib.contextmanager
def lock_data_dir(data_dir: Path) -> Iterator[None]:
    """Reserves `data_dir` for this process until the block ends.

    Raises:
        AlreadyRunning: another Podium uses it.
    """
    with (data_dir / PODIUM_LOCK).open("a+", encoding="utf-8") as lock:
        if not _try_lock(lock.fileno()):
            lock.seek(0)
            raise AlreadyRunning(f"Podium is already running in {data_dir} (pid {lock.read().strip() or 'unknown'}).")
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextlib.asynccontextmanager
async def lock_servers(servers_dir: Path) -> AsyncIterator[int]:
    """Reserves the servers' data; yields the file descriptor of the lock, which the servers must inherit.

    If an earlier Podium was killed, waits until its servers have shut down.

    Raises:
        AlreadyRunning: those servers did not end within SHUTDOWN_TIMEOUT_SECONDS.
    """
    with (servers_dir / SERVERS_LOCK).open("ab") as lock:
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_SECONDS
        while not _try_lock(lock.fileno()):
            if time.monotonic() > deadline:
                raise AlreadyRunning(
                    f"Servers of an earlier run still use {servers_dir}. Try again when they have ended."
                )
            await asyncio.sleep(POLL_SECONDS)
        yield lock.fileno()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass
class ServerState:
    """The password and ports of one server. Without the password, its data cannot be opened again."""

    password: str = field(default_factory=lambda: secrets.token_hex(PASSWORD_BYTES))
    ports: dict[str, int] = field(default_factory=dict)


@dataclass
class SavedState:
    """The contents of `servers.json` in the data directory. Only the file's owner can read it."""

    data_dir: Path
    servers_dir: str | None = None
    """The folder with the servers' data, relative to the data directory so that both can move; None until chosen."""
    servers: dict[str, ServerState] = field(default_factory=dict)

    def server(self, name: str) -> ServerState:
        """The state of this server; a new one with a random password if none is saved."""
        return self.servers.setdefault(name, ServerState())

    def save(self) -> None:
        """Replaces the file in one step."""
        contents = {
            "place": self.servers_dir,
            "servers": {name: asdict(server) for name, server in self.servers.items()},
        }
        new = self.data_dir / f"{STATE_FILE}.new"
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(contents, file, indent=2)
        new.replace(self.data_dir / STATE_FILE)


def load_state(data_dir: Path) -> SavedState:
    """The state saved in `data_dir`; an empty one for a new data directory.

    Raises:
        ServersError: the file is damaged.
    """
    path = data_dir / STATE_FILE
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        servers_dir = contents["place"]
        servers = {name: ServerState(**server) for name, server in contents["servers"].items()}
    except FileNotFoundError:
        return SavedState(data_dir)
    except (ValueError, KeyError, TypeError) as error:
        raise ServersError(
            f"{path} is damaged ({error}). It holds the passwords of the servers' data in the same folder."
        ) from error
    return SavedState(data_dir, servers_dir, servers)


def choose_servers_dir(state: SavedState, servers: Sequence[str], fallback: Path = FALLBACK_DIR) -> Path:
    """The folder for the data of `servers`: the data directory, or one below `fallback` if their accounts need it.

    The choice is made once per data directory and saved.

    Raises:
        ServersError: the data are in the data directory, but the servers' accounts can no longer enter it.
    """
    data_dir = state.data_dir
    locked_out = [name for name in servers if not can_enter(account_for(name, data_dir / name), data_dir)]
    if state.servers_dir is None:
        state.servers_dir = str(_make_fallback(data_dir, fallback)) if locked_out else IN_DATA_DIR
        state.save()
    if state.servers_dir == IN_DATA_DIR and locked_out:
        raise ServersError(
            f"The data of {' and '.join(locked_out)} are in {data_dir}, but the account of the server can no longer "
            "enter this folder. Run chmod o+x on it and on each folder above it, or use another data directory."
        )
    servers_dir = data_dir / state.servers_dir
    servers_dir.mkdir(parents=True, exist_ok=True)
    return servers_dir


def make_server_folder(servers_dir: Path, server: str) -> tuple[Path, Account | None]:
    """The folder of one server, readable only by its account (and root), and that account."""
    folder = servers_dir / server
    account = account_for(server, folder)
    if not folder.exists():
        folder.mkdir(mode=0o700)
        change_owner(folder, account)
    return folder, account


def _make_fallback(data_dir: Path, fallback: Path) -> Path:
    """A folder named after the path of the data directory, and a note in the data directory that says where it is.

    If the folder exists, its data belong to a deleted data directory, and so the passwords are lost. The data are
    renamed and kept until this happens again.
    """
    servers_dir = fallback / hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    if servers_dir.exists():
        old = servers_dir.with_name(f"{servers_dir.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        servers_dir.rename(old)
    servers_dir.mkdir(parents=True)
    for folder in (fallback, servers_dir):
        folder.chmod(TRAVERSABLE)  # independent of the umask
    (data_dir / FALLBACK_NOTE).write_text(
        f"The data of PostgreSQL and RabbitMQ are in {servers_dir}:\n"
        "the unprivileged accounts that the servers run as cannot enter this folder.\n",
        encoding="utf-8",
    )
    return servers_dir
