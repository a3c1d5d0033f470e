"""The whole system on this machine: private servers, the schema, workers and the API, each below a guard."""

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aio_pika
import aiohttp
from aio_pika.exceptions import AMQPError
from pydantic import SecretStr
from sqlalchemy import text

from contracts.topology import REGISTRATIONS_QUEUE
from podium.local.log_files import keep_bounded
from podium.migration import migrate_all
from podium.servers import Servers, ServersError, private_servers
from podium.servers.process import Command, GuardedProcess, Launch, Surroundings, start
from services.events.outbox import RELAY_LOCK
from services.settings import Settings
from services.storage.database import make_engine

ENV_FILE = "podium.env"
LOGS = "logs"
START_SECONDS = 30.0
POLL_SECONDS = 0.1
LOG_TAIL_LINES = 15

Say = Callable[[str], None]


class PartFailed(ServersError):
    """A part of Podium ended."""


@dataclass(frozen=True)
class System:
    """A running Podium."""

    settings: Settings
    data_dir: Path
    servers: Servers
    parts: dict[str, GuardedProcess]
    servers_failure: "asyncio.Task[ServersError]"

    @property
    def api_url(self) -> str:
        """Where the API answers."""
        return f"http://{self.settings.host}:{self.settings.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What another program needs to join."""
        key = self.settings.api_key.get_secret_value()
        return {
            "PODIUM_DATABASE_URL": self.settings.database_url.get_secret_value(),
            "PODIUM_AMQP_URL": self.settings.amqp_url.get_secret_value(),
            "PODIUM_API_URL": self.api_url,
            "PODIUM_SECRET_KEY": self.settings.secret_key.get_secret_value(),
            **({"PODIUM_API_KEY": key} if key else {}),
        }

    async def failure(self) -> ServersError:
        """What ended first without having been told to; waits for ever if all goes well."""
        ends = {name: asyncio.ensure_future(part.ended()) for name, part in self.parts.items()}
        await asyncio.wait({*ends.values(), self.servers_failure}, return_when=asyncio.FIRST_COMPLETED)
        if self.servers_failure.done():  # first, since the parts do not survive it for long
            return self.servers_failure.result()
        return next(part_failed(name, self.data_dir) for name, end in ends.items() if end.done())


@contextlib.asynccontextmanager
async def running_system(settings: Settings, data_dir: Path, say: Say) -> AsyncIterator[System]:
    """Podium, ready for use while inside; all of it is gone afterwards, its state stays in `data_dir`.

    Raises `ServersError`, each with a sentence that says what to do.
    """
    _require_free_port(settings.host, settings.port)
    say("Starting PostgreSQL and RabbitMQ ...")
    async with private_servers(data_dir) as servers, contextlib.AsyncExitStack() as stack:
        settings = settings.model_copy(
            update={
                "database_url": SecretStr(servers.database_url),
                "amqp_url": SecretStr(servers.amqp_url),
                "secret_key": SecretStr(_secret_key(settings, data_dir)),
            }
        )
        failure = asyncio.create_task(_as_servers_error(servers.wait_for_failure()), name="watch the servers")
        stack.callback(failure.cancel)
        logs = asyncio.create_task(keep_bounded(log_of(data_dir, "api").parent), name="keep the logs bounded")
        stack.callback(logs.cancel)
        system = System(settings, data_dir, servers, {}, failure)
        _write_env(data_dir / ENV_FILE, system.environment)
        await migrate_all(settings, say)
        say("Starting the workers and the API ...")
        await _start_part(system, stack, "worker")
        await _until(system, _workers_work)
        await _start_part(system, stack, "api")
        await _until(system, _api_ready)
        yield system


async def start_program(system: System, name: str, module: str, environment: dict[str, str]) -> GuardedProcess:
    """A Python program beside Podium, with Podium's addresses in its environment and its output in `logs/`."""
    env = {**os.environ, **system.environment, **environment, "PYTHONUNBUFFERED": "1"}
    command = Command([sys.executable, "-m", *module.split()], env, Path.cwd())
    return await start(Launch(command), Surroundings(None, log_of(system.data_dir, name)))


def address_of(url: str) -> str:
    """Host and port of a URL, without what is secret in it."""
    return url.rpartition("@")[2].partition("/")[0]


def log_of(data_dir: Path, name: str) -> Path:
    """Where a part writes what it has to say."""
    return data_dir.resolve() / LOGS / f"{name}.log"


def part_failed(name: str, data_dir: Path) -> PartFailed:
    """The error for a part that ended, with the end of its log."""
    log = log_of(data_dir, name)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    return PartFailed(f"The {name} has ended. The end of its log, {log}:\n{tail}")


async def _start_part(system: System, stack: contextlib.AsyncExitStack, name: str) -> None:
    environment = {
        "PODIUM_HOST": system.settings.host,
        "PODIUM_PORT": str(system.settings.port),
        "PODIUM_API_KEY": system.settings.api_key.get_secret_value(),
    }
    part = await start_program(system, name, f"podium {name}", environment)
    system.parts[name] = part
    stack.push_async_callback(part.stop)


async def _until(system: System, works: Callable[[System], Awaitable[bool]]) -> None:
    """Return when it works. Raises as soon as a part has ended, and when it takes too long."""
    failure = asyncio.ensure_future(system.failure())
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await works(system):
                done, _ = await asyncio.wait({failure}, timeout=POLL_SECONDS)
                if done:
                    raise failure.result()
    except TimeoutError:
        logs = system.data_dir / LOGS
        raise PartFailed(f"Podium did not become ready within {START_SECONDS:.0f} s; its logs are in {logs}.") from None
    finally:
        failure.cancel()


async def _workers_work(system: System) -> bool:
    """Whether somebody takes registrations and somebody holds the relay's lock."""
    try:
        async with await aio_pika.connect(system.settings.amqp_url.get_secret_value()) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(REGISTRATIONS_QUEUE)
            consumers = queue.declaration_result.consumer_count or 0
    except (AMQPError, OSError):
        return False
    return consumers > 0 and await _relay_works(system.settings)


async def _relay_works(settings: Settings) -> bool:
    held = text(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
        "WHERE locktype = 'advisory' AND datname = current_database() AND granted "
        "AND (classid::bigint << 32) + objid::bigint = :key"
    )
    engine = make_engine(settings, application_name="podium-up", pool_size=1)
    try:
        async with engine.connect() as connection:
            return bool(await connection.scalar(held, {"key": RELAY_LOCK}))
    finally:
        await engine.dispose()


async def _api_ready(system: System) -> bool:
    try:
        async with aiohttp.ClientSession() as client, client.get(f"{system.api_url}/health/ready") as response:
            return response.status == 200  # noqa: PLR2004 - HTTP OK
    except aiohttp.ClientError:
        return False


async def _as_servers_error(waiting: Awaitable[ServersError]) -> ServersError:
    return await waiting


def _require_free_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServersError(
                f"Port {port} on {host} cannot be used ({error.strerror}): choose another with --port."
            ) from None


def _secret_key(settings: Settings, data_dir: Path) -> str:
    """The key of the settings, else the one that an earlier run made, else a new one."""
    given = settings.secret_key.get_secret_value()
    with contextlib.suppress(FileNotFoundError):
        for line in (data_dir / ENV_FILE).read_text().splitlines():
            name, _, value = line.partition("=")
            if name == "PODIUM_SECRET_KEY" and value and not given:
                return value
    return given or secrets.token_urlsafe(32)


def _write_env(path: Path, environment: dict[str, str]) -> None:
    """Write it whole or not at all, readable by its owner alone."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.writelines(f"{name}={value}\n" for name, value in environment.items())
    new.replace(path)
