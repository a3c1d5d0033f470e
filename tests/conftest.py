import gc
import os
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

import aio_pika
import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from contracts import topology
from podium.servers import ServersMissing, docker_answers, private_servers
from services.settings import Settings
from services.storage.database import Sessions, async_url, make_engine
from services.storage.migrate import migrate
from tests.support.containers import both_containers
from tests.support.processes import forks_allowed
from tests.support.reused_databases import ReusedDatabases, reused_databases
from workers.amqp.topology import declare

# Settings of a developer must not affect tests. The addresses of the servers are read before they are removed.
EXTERNAL = {name: value for name, value in os.environ.items() if name.startswith("PODIUM_")}
# A shell starts background jobs with these signals ignored, and all programs that tests start would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
# Tests start hundreds of Pythons: what the first has compiled is kept for the others.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# The same seed for all processes of one test run.
os.environ.setdefault("FRESH_SEED", str(secrets.randbelow(10**6)))


def pytest_xdist_auto_num_workers() -> int | None:
    """One process more than there are cores: tests of outages and limits wait for a third of their time."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it, if this hook has no answer
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives as long as the run: a tenth of the CPU time of tests."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class TestServers:
    """The addresses of the real PostgreSQL and RabbitMQ of this run."""

    __test__ = False

    database_url: str
    amqp_url: str


@pytest.fixture(scope="session", autouse=True)
def _without_developer_settings() -> None:
    for name in EXTERNAL:
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _forks(_without_developer_settings: None) -> Iterator[None]:
    with forks_allowed():
        yield


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """The data directory of private servers, in a folder that their unprivileged account can enter."""
    with tempfile.TemporaryDirectory(prefix="podium-tests-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest_asyncio.fixture(scope="session")
async def servers(servers_folder: Path) -> AsyncIterator[TestServers]:
    """Real servers: from the environment, private ones, or containers. Without any, the run fails."""
    urls = {name: value for name, value in EXTERNAL.items() if name in {"PODIUM_DATABASE_URL", "PODIUM_AMQP_URL"}}
    try:
        async with private_servers(servers_folder, durable=False, environ={**os.environ, **urls}) as running:
            yield TestServers(running.database_url, running.amqp_url)
    except ServersMissing:
        if not docker_answers(os.environ):
            raise
        with both_containers() as urls_of_containers:
            yield TestServers(*urls_of_containers)


@pytest_asyncio.fixture(scope="session")
async def template(servers: TestServers) -> str:
    """The name of a migrated database; each test gets a clone of it."""
    name = f"podium_template_{uuid4().hex}"
    await _administer(servers, f'CREATE DATABASE "{name}"')
    engine = make_engine(_settings(servers, name), application_name="tests")
    await migrate(engine)
    await engine.dispose()
    return name


@pytest_asyncio.fixture(scope="session")
async def databases(servers: TestServers, template: str) -> AsyncIterator[ReusedDatabases]:
    """Clones of the template, for one test after the other."""
    async with reused_databases(servers.database_url, template) as databases:
        yield databases


@pytest_asyncio.fixture
async def settings(servers: TestServers, databases: ReusedDatabases) -> AsyncIterator[Settings]:
    """Settings with a migrated database for this test alone."""
    name = await databases.take()
    yield _settings(servers, name)
    await databases.give_back(name)


@pytest_asyncio.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """An engine on this test's database."""
    engine = make_engine(settings, application_name="tests", pool_size=20)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> Sessions:
    """Sessions on this test's database."""
    return Sessions(engine)


@pytest_asyncio.fixture
async def broker(settings: Settings) -> AsyncIterator[aio_pika.abc.AbstractConnection]:
    """A connection to RabbitMQ, on which Podium's exchanges and empty queues exist."""
    connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        for queue in (topology.REGISTRATIONS_QUEUE, topology.PARKED_QUEUE):
            await channel.queue_delete(queue)
        for exchange in (topology.REGISTRATIONS_EXCHANGE, topology.EVENTS_EXCHANGE):
            await channel.exchange_delete(exchange)
        await declare(settings)
        yield connection


def _settings(servers: TestServers, database: str) -> Settings:
    url = make_url(servers.database_url).set(database=database).render_as_string(hide_password=False)
    return _shared_settings(servers).model_copy(update={"database_url": SecretStr(url)})


@cache
def _shared_settings(servers: TestServers) -> Settings:
    """Reading the environment takes ten times as long as a copy."""
    return Settings(
        database_url=SecretStr(servers.database_url),
        amqp_url=SecretStr(servers.amqp_url),
        secret_key=SecretStr("a test's secret key"),
    )


async def _administer(servers: TestServers, statement: str) -> None:
    engine = create_async_engine(async_url(servers.database_url), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()
