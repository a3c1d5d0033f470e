"""Private PostgreSQL and RabbitMQ servers for one Podium on this machine.

    ensure_servers(Purpose.RUN, print)                     # installs missing programs, else raises ServersMissing
    async with private_servers(Path(".podium")) as servers:
        servers.database_url, servers.amqp_url             # both accept clients
        await servers.postgres.stop()                      # also start() and kill(); address and data stay the same
        raise await servers.wait_for_failure()             # ServerDied, as soon as one ends unexpectedly

Each server listens on loopback, on its own saved ports, with a random password, and runs as an unprivileged account.
It runs below a guard process that stops it when this process ends, for whatever reason. If PODIUM_DATABASE_URL or
PODIUM_AMQP_URL is set, that server is used as it is, and `servers.postgres` or `servers.rabbitmq` is None.

All errors are `ServersError`s: the message is for a person, `exit_code` is for the shell. This package needs the
standard library alone, because the set-up runs it before anything is installed. Its modules:

- `install`, `machine`, `apt`, `binaries`: find the programs, or install them
- `data_directory`, `accounts`, `ports`: state, locks, owner and addresses of the servers
- `server`, `postgres`, `rabbitmq`: start, watch and stop one server
- `process`, `guard`: run a program so that it ends with this process
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from podium.servers import postgres, rabbitmq
from podium.servers.data_directory import (
    SavedState,
    choose_servers_dir,
    load_state,
    lock_data_dir,
    lock_servers,
    make_server_folder,
)
from podium.servers.errors import (
    AlreadyRunning,
    InstallFailed,
    ServerDied,
    ServersError,
    ServersMissing,
    ServerStartFailed,
)
from podium.servers.install import AMQP_URL, DATABASE_URL, Purpose, ensure_servers
from podium.servers.machine import docker_answers
from podium.servers.process import ProcessContext
from podium.servers.server import PrivateServer, ServerKind

__all__ = [
    "AlreadyRunning",
    "InstallFailed",
    "PrivateServer",
    "Purpose",
    "ServerDied",
    "ServerStartFailed",
    "Servers",
    "ServersError",
    "ServersMissing",
    "docker_answers",
    "ensure_servers",
    "private_servers",
]

LOGS = "logs"


@dataclass(frozen=True)
class Servers:
    """A PostgreSQL and a RabbitMQ that accept clients."""

    database_url: str
    """`postgresql://user:password@127.0.0.1:port/podium`, or PODIUM_DATABASE_URL."""
    amqp_url: str
    """`amqp://user:password@127.0.0.1:port/`, or PODIUM_AMQP_URL."""
    postgres: PrivateServer | None
    rabbitmq: PrivateServer | None

    async def wait_for_failure(self) -> ServerDied:
        """Waits until a private server ends unexpectedly, if necessary forever; returns the error to report."""
        private = [server for server in (self.postgres, self.rabbitmq) if server is not None]
        if not private:
            await asyncio.Event().wait()
        failures = [asyncio.create_task(server.died()) for server in private]
        try:
            done, _ = await asyncio.wait(failures, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in failures:
                task.cancel()


@contextlib.asynccontextmanager
async def private_servers(
    data_dir: Path,
    *,
    durable: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> AsyncIterator[Servers]:
    """Runs both servers inside the block, with the state of earlier runs in `data_dir`. The start takes about 3 s.

    `durable=False` is faster, for tests: a power cut can lose commits, a killed server cannot.

    Raises:
        AlreadyRunning: another Podium uses `data_dir`.
        ServersMissing: the programs are not installed; call `ensure_servers` first.
        ServersError: the servers cannot start for another reason.
    """
    names = [name for name, url in ((postgres.NAME, DATABASE_URL), (rabbitmq.NAME, AMQP_URL)) if not environ.get(url)]
    async with contextlib.AsyncExitStack() as stack:
        try:
            data_dir = _make_data_dir(data_dir)
            stack.enter_context(lock_data_dir(data_dir))
            private: dict[str, PrivateServer] = {}
            if names:
                state = load_state(data_dir)
                servers_dir = choose_servers_dir(state, names)
                lock = await stack.enter_async_context(lock_servers(servers_dir))
                private = {
                    name: _make_server(name, state, servers_dir, lock, durable=durable, environ=environ)
                    for name in names
                }
                state.save()
        except OSError as error:
            raise ServersError(f"{data_dir} cannot be used as a data directory: {error}") from error
        stack.push_async_callback(_stop, list(private.values()))
        await _start(list(private.values()))
        yield Servers(
            database_url=private[postgres.NAME].url if postgres.NAME in private else environ[DATABASE_URL],
            amqp_url=private[rabbitmq.NAME].url if rabbitmq.NAME in private else environ[AMQP_URL],
            postgres=private.get(postgres.NAME),
            rabbitmq=private.get(rabbitmq.NAME),
        )


def _make_data_dir(data_dir: Path) -> Path:
    """Creates the directory; returns its absolute path, because servers and guards have other working directories."""
    (data_dir / LOGS).mkdir(parents=True, exist_ok=True)
    return data_dir.resolve()


def _make_server(
    name: str, state: SavedState, servers_dir: Path, lock: int, *, durable: bool, environ: Mapping[str, str]
) -> PrivateServer:
    folder, account = make_server_folder(servers_dir, name)
    password = state.server(name).password
    kind: ServerKind
    if name == postgres.NAME:
        kind = postgres.Postgres(folder, password, environ, durable)
    else:
        kind = rabbitmq.Rabbitmq(folder, password, environ)
    return PrivateServer(kind, state, ProcessContext(account, state.data_dir / LOGS / f"{name}.log", [lock]))


async def _start(servers: Sequence[PrivateServer]) -> None:
    """Starts all servers at the same time; the first failure cancels the other starts."""
    try:
        async with asyncio.TaskGroup() as group:
            for server in servers:
                group.create_task(server.start())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _stop(servers: Sequence[PrivateServer]) -> None:
    await asyncio.gather(*(server.stop() for server in servers))
