"""The whole system on this machine: private servers, the schema, the workers and the API."""

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aio_pika.exceptions import AMQPError
from pydantic import SecretStr
from sqlalchemy import text

from contracts.topology import REGISTRATIONS_QUEUE
from podium.local.log_files import last_lines, log_folder, log_of, rotate_logs
from podium.migration import migrate_all
from podium.servers import Servers, ServersError, private_servers
from podium.servers.process import Command, GuardedProcess, Launch, ProcessContext, start
from services.egress import EVERYTHING, LOOPBACK, PRIVATE
from services.events.outbox import RELAY_SESSION
from services.settings import Settings
from services.storage.database import make_engine
from services.tls import broker_url
from workers.amqp.connection import CONNECT_SECONDS, open_connection

ENV_FILE = "podium.env"
START_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.1

Say = Callable[[str], None]


class PartFailed(ServersError):
    """A part of Podium ended, or did not become ready."""


@dataclass(frozen=True)
class System:
    """A running Podium: its settings, its servers and its processes."""

    settings: Settings
    data_dir: Path
    servers: Servers
    parts: dict[str, GuardedProcess]
    servers_failure: "asyncio.Task[ServersError]"

    @property
    def api_url(self) -> str:
        """The base URL of the API."""
        return f"http://{self.settings.host}:{self.settings.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which another program uses this Podium."""
        key = self.settings.api_key.get_secret_value()
        return {
            "PODIUM_DATABASE_URL": self.settings.database_url.get_secret_value(),
            "PODIUM_AMQP_URL": self.settings.amqp_url.get_secret_value(),
            "PODIUM_API_URL": self.api_url,
            "PODIUM_SECRET_KEY": self.settings.secret_key.get_secret_value(),
            **({"PODIUM_API_KEY": key} if key else {}),
        }

    async def failure(self) -> ServersError:
        """Waits until a server or a part ends unexpectedly, if necessary forever; returns the error to report."""
        ends = {name: asyncio.ensure_future(part.ended()) for name, part in self.parts.items()}
        await asyncio.wait({*ends.values(), self.servers_failure}, return_when=asyncio.FIRST_COMPLETED)
        if self.servers_failure.done():  # first: without the server, the parts end soon after
            return self.servers_failure.result()
        return next(_part_failed(name, self.data_dir) for name, end in ends.items() if end.done())


@contextlib.asynccontextmanager
async def running_system(settings: Settings, data_dir: Path, say: Say) -> AsyncIterator[System]:
    """Runs Podium inside the block, which starts when Podium is ready. The state stays in `data_dir`.

    Raises:
        ServersError: Podium did not start; the message says what to do.
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
        failure = asyncio.create_task(_servers_failure(servers), name="watch the servers")
        stack.callback(failure.cancel)
        rotation = asyncio.create_task(rotate_logs(log_folder(data_dir)), name="rotate the logs")
        stack.callback(rotation.cancel)
        system = System(settings, data_dir, servers, {}, failure)
        _write_env(data_dir / ENV_FILE, system.environment)
        await migrate_all(settings, say)
        say("Starting the workers and the API ...")
        for name in ("worker", "api"):
            await _start_part(system, stack, name)
        for is_ready in (_api_ready, _workers_ready):
            await _wait_until(system, is_ready)
        yield system


async def start_program(system: System, name: str, module: str, environment: dict[str, str]) -> GuardedProcess:
    """Starts a Python module with Podium's addresses in its environment and its output in `logs/`."""
    env = {**os.environ, **system.environment, **environment, "PYTHONUNBUFFERED": "1"}
    command = Command([sys.executable, "-m", *module.split()], env, Path.cwd())
    return await start(Launch(command), ProcessContext(None, log_of(system.data_dir, name)))


def address_of(url: str) -> str:
    """Host and port of a URL, without its credentials."""
    return url.rpartition("@")[2].partition("/")[0]


def _part_failed(name: str, data_dir: Path) -> PartFailed:
    """The error for a part that ended, with the end of its log."""
    log = log_of(data_dir, name)
    return PartFailed(f"The {name} has ended. The end of its log ({log}):\n{last_lines(log)}")


async def _start_part(system: System, stack: contextlib.AsyncExitStack, name: str) -> None:
    # Receivers under development run on this machine.
    networks = system.settings.webhook_dial_networks or (*EVERYTHING, *LOOPBACK, *PRIVATE)
    environment = {
        "PODIUM_WEBHOOK_DIAL_NETWORKS": ",".join(map(str, networks)),
        "PODIUM_HOST": system.settings.host,
        "PODIUM_PORT": str(system.settings.port),
        "PODIUM_API_KEY": system.settings.api_key.get_secret_value(),
    }
    part = await start_program(system, name, f"podium {name}", environment)
    system.parts[name] = part
    stack.push_async_callback(part.stop)


async def _wait_until(system: System, is_ready: Callable[[System], Awaitable[bool]]) -> None:
    """Wait until `is_ready`. Raises as soon as a part has ended, and after START_TIMEOUT_SECONDS."""
    failure = asyncio.ensure_future(system.failure())
    try:
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            while not await is_ready(system):
                done, _ = await asyncio.wait({failure}, timeout=POLL_SECONDS)
                if done:
                    raise failure.result()
    except TimeoutError:
        raise PartFailed(
            f"Podium did not become ready within {START_TIMEOUT_SECONDS:.0f} s. Its logs: {log_folder(system.data_dir)}"
        ) from None
    finally:
        failure.cancel()


async def _workers_ready(system: System) -> bool:
    """Whether a registrar consumes announcements and a relay holds its lock."""
    try:
        async with await open_connection(broker_url(system.settings), CONNECT_SECONDS) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(REGISTRATIONS_QUEUE)
            consumers = queue.declaration_result.consumer_count or 0
    except (AMQPError, OSError):
        return False
    return consumers > 0 and await _relay_ready(system.settings)


async def _relay_ready(settings: Settings) -> bool:
    engine = make_engine(settings, application_name="podium-up", pool_size=1)
    try:
        async with engine.connect() as connection:
            return bool(await connection.scalar(text(f"SELECT EXISTS ({RELAY_SESSION})")))
    finally:
        await engine.dispose()


async def _api_ready(system: System) -> bool:
    try:
        async with aiohttp.ClientSession() as client, client.get(f"{system.api_url}/health/ready") as response:
            return response.status == 200  # noqa: PLR2004 - HTTP OK
    except aiohttp.ClientError:
        return False


async def _servers_failure(servers: Servers) -> ServersError:
    return await servers.wait_for_failure()


def _require_free_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServersError(
                f"Port {port} on {host} cannot be used ({error.strerror}). Choose another port with --port."
            ) from None


def _secret_key(settings: Settings, data_dir: Path) -> str:
    """The key of the settings, else the one that an earlier run created, else a new one."""
    configured = settings.secret_key.get_secret_value()
    with contextlib.suppress(FileNotFoundError):
        for line in (data_dir / ENV_FILE).read_text().splitlines():
            name, _, value = line.partition("=")
            if name == "PODIUM_SECRET_KEY" and value and not configured:
                return value
    return configured or secrets.token_urlsafe(32)


def _write_env(path: Path, environment: dict[str, str]) -> None:
    """Replace the file in one step; only its owner can read it."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.writelines(f"{name}={value}\n" for name, value in environment.items())
    new.replace(path)
