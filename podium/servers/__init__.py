"""PostgreSQL and RabbitMQ for this machine: found or installed, started privately, and gone when we are.

    ensure_servers(Purpose.RUN, print)                     # finds or installs the programs, else ServersMissing
    async with private_servers(Path(".podium")) as servers:
        servers.database_url, servers.amqp_url             # both answer
        await servers.postgres.stop()                      # also start() and kill(): same address, same data
        raise await servers.wait_for_failure()             # ServerDied, as soon as one ends by itself

Every server runs on loopback, on ports of its own that are remembered, with random passwords, as an unprivileged
account. Each stands below a guard process that ends it when this process ends, in whatever way. Where
PODIUM_DATABASE_URL or PODIUM_AMQP_URL is set, that server is used as it is and `servers.postgres` or
`servers.rabbitmq` is None.

Errors are `ServersError`s: their text is for a person, their `exit_code` for the shell. This package needs the
standard library alone, since the set-up runs it before anything is installed.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from podium.servers import postgres, rabbitmq
from podium.servers.errors import (
    AlreadyRunning,
    InstallFailed,
    ServerDied,
    ServersError,
    ServersMissing,
    ServerStartFailed,
)
from podium.servers.install import AMQP_URL, DATABASE_URL, Purpose, ensure_servers
from podium.servers.locks import only_podium, only_servers
from podium.servers.machine import docker_answers
from podium.servers.memory import Memory, recall
from podium.servers.place import choose, folder_for
from podium.servers.process import Surroundings
from podium.servers.server import Kind, PrivateServer

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
    """A PostgreSQL and a RabbitMQ that answer."""

    database_url: str
    """`postgresql://user:password@127.0.0.1:port/podium`, or PODIUM_DATABASE_URL."""
    amqp_url: str
    """`amqp://user:password@127.0.0.1:port/`, or PODIUM_AMQP_URL."""
    postgres: PrivateServer | None
    rabbitmq: PrivateServer | None

    async def wait_for_failure(self) -> ServerDied:
        """Waits until a private server ends without having been told to; for ever, if all goes well."""
        watched = [server for server in (self.postgres, self.rabbitmq) if server is not None]
        if not watched:
            await asyncio.Event().wait()
        waiting = [asyncio.create_task(server.died()) for server in watched]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in waiting:
                task.cancel()


@contextlib.asynccontextmanager
async def private_servers(
    data_dir: Path,
    *,
    durable: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> AsyncIterator[Servers]:
    """Both servers while inside, with the state that an earlier run left in `data_dir`; about 3 s to start.

    `durable=False` trades safety in a power cut for speed (tests); what was committed survives a killed server still.

    Raises:
        AlreadyRunning: another Podium holds `data_dir`.
        ServersMissing: the programs are not on this machine; `ensure_servers` first.
        ServersError: anything else that keeps them from starting, in a sentence.
    """
    wanted = [name for name, url in ((postgres.NAME, DATABASE_URL), (rabbitmq.NAME, AMQP_URL)) if not environ.get(url)]
    async with contextlib.AsyncExitStack() as stack:
        try:
            data_dir = _made_ready(data_dir)
            stack.enter_context(only_podium(data_dir))
            made: dict[str, PrivateServer] = {}
            if wanted:
                memory = recall(data_dir)
                place = choose(memory, wanted)
                lock = await stack.enter_async_context(only_servers(place))
                made = {name: _make(name, memory, place, lock, durable=durable, environ=environ) for name in wanted}
                memory.save()
        except OSError as error:
            raise ServersError(f"{data_dir} cannot be used as a data directory: {error}") from error
        stack.push_async_callback(_stop, list(made.values()))
        await _start(list(made.values()))
        yield Servers(
            database_url=made[postgres.NAME].url if postgres.NAME in made else environ[DATABASE_URL],
            amqp_url=made[rabbitmq.NAME].url if rabbitmq.NAME in made else environ[AMQP_URL],
            postgres=made.get(postgres.NAME),
            rabbitmq=made.get(rabbitmq.NAME),
        )


def _made_ready(data_dir: Path) -> Path:
    """Absolute, since servers and guards have working directories of their own."""
    (data_dir / LOGS).mkdir(parents=True, exist_ok=True)
    return data_dir.resolve()


def _make(
    name: str, memory: Memory, place: Path, lock: int, *, durable: bool, environ: Mapping[str, str]
) -> PrivateServer:
    folder, account = folder_for(place, name)
    password = memory.of(name).password
    kind: Kind
    if name == postgres.NAME:
        kind = postgres.Postgres(folder, password, environ, durable)
    else:
        kind = rabbitmq.Rabbitmq(folder, password, environ)
    return PrivateServer(kind, memory, Surroundings(account, memory.data_dir / LOGS / f"{name}.log", [lock]))


async def _start(servers: Sequence[PrivateServer]) -> None:
    """All at once; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for server in servers:
                group.create_task(server.start())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _stop(servers: Sequence[PrivateServer]) -> None:
    await asyncio.gather(*(server.stop() for server in servers))
