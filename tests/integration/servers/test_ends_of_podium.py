"""Whatever ends Podium, nothing of its servers is left, and the next start finds the state."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from podium.servers import private_servers
from tests.integration.servers.observing import alive, below, until

ROOT = Path(__file__).resolve().parents[3]


@contextlib.asynccontextmanager
async def a_podium(data_dir: Path, environ: dict[str, str]) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process that holds private servers, in a process group of its own as a shell makes one; and its database."""
    command = [sys.executable, "-m", "tests.integration.servers.holding", str(data_dir)]
    holding = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environ, stdout=asyncio.subprocess.PIPE, process_group=0
    )
    assert holding.stdout is not None
    try:
        yield holding, json.loads(await holding.stdout.readline())["database_url"]
    finally:
        if holding.returncode is None:
            holding.kill()
        await holding.wait()


async def test_a_hard_kill_leaves_no_process_and_no_lock(data_dir: Path) -> None:
    """After SIGKILL both servers shut down by themselves, and a start that comes at once waits for them."""
    async with a_podium(data_dir, dict(os.environ)) as (podium, database_url):
        processes = below(podium.pid)
        assert {"postgres", "epmd", "erl_child_setup"} <= set(processes.values())
        connection = await asyncpg.connect(database_url)
        await connection.execute("CREATE TABLE kept ()")

        podium.kill()
        await podium.wait()

        async with private_servers(data_dir, durable=False) as servers:
            assert not alive(processes)
            assert servers.database_url == database_url
            again = await asyncpg.connect(servers.database_url)
            assert await again.fetchval("SELECT count(*) FROM kept") == 0
            await again.close()
        connection.terminate()


async def test_even_if_the_guards_are_killed_too_nothing_is_left(
    data_dir: Path, without_rabbitmq: dict[str, str]
) -> None:
    """As when somebody kills everything that bears our name."""
    async with a_podium(data_dir, without_rabbitmq) as (podium, _):
        processes = below(podium.pid)
        for pid in [podium.pid, *(pid for pid, name in processes.items() if name.startswith("python"))]:
            os.kill(pid, signal.SIGKILL)
        await podium.wait()
        await until(lambda: not alive(processes), "all processes are gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_shuts_the_servers_down_in_order(
    data_dir: Path, without_rabbitmq: dict[str, str], number: signal.Signals
) -> None:
    """The terminal's Ctrl-C goes to the whole process group, of which the servers are no members."""
    async with a_podium(data_dir, without_rabbitmq) as (podium, _):
        processes = below(podium.pid)
        os.killpg(podium.pid, number)
        await podium.wait()
        await until(lambda: not alive(processes), "all processes are gone")
    log = (data_dir / "logs" / "postgres.log").read_text()
    assert log.count("received fast shutdown request") == 1
    assert log.rstrip().endswith("database system is shut down")


async def test_a_process_id_that_now_belongs_to_another_is_no_obstacle(
    data_dir: Path, without_rabbitmq: dict[str, str]
) -> None:
    """PostgreSQL alone would refuse to start beside a stale postmaster.pid with a living process in it."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq) as servers:
        assert servers.postgres is not None
        pid_file = data_dir / "postgres" / "data" / "postmaster.pid"
        stale = pid_file.read_text()
        await servers.postgres.kill()
        pid_file.write_text(stale.replace(stale.partition("\n")[0], str(os.getppid()), 1))
        (data_dir / "podium.lock").write_text("1\n")
        await servers.postgres.start()
