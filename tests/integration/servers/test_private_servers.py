"""Private servers, as `podium up` uses them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import aio_pika
import asyncpg
import pytest

from podium.servers import AlreadyRunning, PrivateServer, ServerDied, Servers, private_servers
from tests.integration.servers.process_tree import GUARD, alive, is_root, listening, owners, tree, until


@dataclass(frozen=True)
class TwoRuns:
    """The results of a first run, and the servers of a second run in the same data directory."""

    data_dir: Path
    first_addresses: tuple[str, str]
    first_survivors: Collection[int]
    """Processes of the first run that existed after its end."""
    servers: Servers


@pytest.fixture(scope="module")
async def runs(new_data_dir: Callable[[], Path]) -> AsyncIterator[TwoRuns]:
    """Shared by the tests that leave the servers running."""
    data_dir = new_data_dir()
    async with private_servers(data_dir, durable=False) as first:
        await _insert(first.database_url, "first run")
        await _send(first.amqp_url, b"first run")
        addresses = (first.database_url, first.amqp_url)
        processes = tree(first.postgres) | tree(first.rabbitmq)
        assert {"postgres", "epmd"} <= set(processes.values())
    survivors = alive(processes)
    async with private_servers(data_dir, durable=False) as second:
        yield TwoRuns(data_dir, addresses, survivors, second)


async def test_state_and_addresses_are_kept_and_all_processes_end(runs: TwoRuns) -> None:
    """A second run has the rows, messages, ports and passwords of the first. No process exists between the runs."""
    assert not runs.first_survivors
    assert (runs.servers.database_url, runs.servers.amqp_url) == runs.first_addresses
    assert await _rows(runs.servers.database_url) == ["first run"]
    assert await _received(runs.servers.amqp_url) == b"first run"


async def test_servers_are_private(runs: TwoRuns) -> None:
    """On loopback, not as root, with a random password each, and with secrets that only their owner can read."""
    servers, data_dir = runs.servers, runs.data_dir
    processes = tree(servers.postgres) | tree(servers.rabbitmq)
    without_guards = [pid for pid, name in processes.items() if name != GUARD]
    assert listening(without_guards) == {"tcp": {"0100007F"}, "tcp6": {"00000000000000000000000001000000"}}
    if is_root():
        assert 0 not in owners(without_guards)
    for wrong in ("podium:wrong@", "podium@"):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(servers.database_url.replace(_credentials(servers.database_url), wrong))
    with pytest.raises(aio_pika.exceptions.ProbableAuthenticationError):
        await aio_pika.connect(servers.amqp_url.replace(_credentials(servers.amqp_url), "guest:guest@"))
    assert (data_dir / "servers.json").stat().st_mode & 0o077 == 0


async def test_a_second_start_in_the_same_data_directory_is_refused(runs: TwoRuns) -> None:
    """The error names the directory and the process. The first Podium continues."""
    servers, data_dir = runs.servers, runs.data_dir
    with pytest.raises(AlreadyRunning, match=rf"already running in {data_dir} \(pid {os.getpid()}\)"):
        async with private_servers(data_dir):
            pytest.fail("two at a time")
    assert servers.postgres is not None
    assert servers.postgres.pid is not None


async def test_a_killed_server_starts_again_with_its_address_and_its_data(runs: TwoRuns) -> None:
    """Committed rows and confirmed messages survive `kill`, which is not reported as a failure."""
    servers = runs.servers
    failure = asyncio.create_task(servers.wait_for_failure())
    await _insert(servers.database_url, "before the kill")
    await _send(servers.amqp_url, b"before the kill")

    both = _both(servers)
    await asyncio.gather(*(server.kill() for server in both))
    assert [server.pid for server in both] == [None, None]
    await asyncio.gather(*(server.start() for server in both))

    assert tuple(server.url for server in both) == (servers.database_url, servers.amqp_url)
    assert "before the kill" in await _rows(servers.database_url)
    assert await _received(servers.amqp_url) == b"before the kill"
    assert not failure.done()
    failure.cancel()


async def test_a_stopped_server_can_be_started_again(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """A second `stop` or `start` changes nothing."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq) as servers:
        assert servers.postgres is not None
        await _insert(servers.database_url, "kept")
        for action in (servers.postgres.stop, servers.postgres.stop, servers.postgres.start, servers.postgres.start):
            await action()
        assert await _rows(servers.database_url) == ["kept"]


async def test_an_unexpected_end_is_reported_and_the_server_can_start_again(
    data_dir: Path, without_rabbitmq: dict[str, str]
) -> None:
    """The error names the server and shows the end of its log. All processes of the server have ended."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq) as servers:
        assert servers.postgres is not None
        assert servers.postgres.pid is not None
        processes = tree(servers.postgres)
        os.kill(servers.postgres.pid, signal.SIGKILL)

        error = await asyncio.wait_for(servers.wait_for_failure(), timeout=10)

        assert isinstance(error, ServerDied)
        assert f"postgres ended unexpectedly (exit code -9). The end of its log ({servers.postgres.log}):" in str(error)
        assert not alive(processes)
        await servers.postgres.start()
        assert await _has_no_rows(servers.database_url)


async def test_a_server_ends_with_its_killed_guard(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """The kernel then signals the server, and the server can start again."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq) as servers:
        assert servers.postgres is not None
        processes = tree(servers.postgres)
        guard = next(pid for pid, name in processes.items() if name == GUARD)
        os.kill(guard, signal.SIGKILL)

        await asyncio.wait_for(servers.wait_for_failure(), timeout=10)

        await until(lambda: not alive(processes), "the processes of the server have ended")
        await servers.postgres.start()
        assert await _has_no_rows(servers.database_url)


async def test_a_server_under_sigstop_can_be_shut_down(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """The guard continues it, so that it handles the stop signal."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq) as servers:
        assert servers.postgres is not None
        assert servers.postgres.pid is not None
        processes = tree(servers.postgres)
        os.kill(servers.postgres.pid, signal.SIGSTOP)
    assert not alive(processes)


async def test_servers_with_an_address_are_used_as_they_are(data_dir: Path) -> None:
    """Nothing starts, and the addresses stay unchanged."""
    named = {"PODIUM_DATABASE_URL": "postgresql://u@db/x?sslmode=require", "PODIUM_AMQP_URL": "amqps://mq//v"}
    async with private_servers(data_dir, environ=named) as servers:
        assert (servers.database_url, servers.amqp_url) == tuple(named.values())
        assert (servers.postgres, servers.rabbitmq) == (None, None)
    assert not (data_dir / "servers.json").exists()


def _both(servers: Servers) -> tuple[PrivateServer, PrivateServer]:
    assert servers.postgres is not None
    assert servers.rabbitmq is not None
    return servers.postgres, servers.rabbitmq


def _credentials(url: str) -> str:
    return url.partition("://")[2].partition("@")[0] + "@"


async def _insert(database_url: str, text: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE IF NOT EXISTS noted (text text)")
    await connection.execute("INSERT INTO noted VALUES ($1)", text)
    await connection.close()


async def _rows(database_url: str) -> list[str]:
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT text FROM noted")
    await connection.close()
    return [row["text"] for row in rows]


async def _has_no_rows(database_url: str) -> bool:
    connection = await asyncpg.connect(database_url)
    answer = await connection.fetchval("SELECT to_regclass('noted') IS NULL")
    await connection.close()
    return bool(answer)


async def _send(amqp_url: str, body: bytes) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        # A classic queue: a quorum queue of RabbitMQ 3.10 finds no leader if the node is killed in its first second.
        await channel.declare_queue("kept", durable=True)
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key="kept")


async def _received(amqp_url: str) -> bytes:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue("kept")
        message = await queue.get(no_ack=True, timeout=10)
        assert message is not None
        return message.body
