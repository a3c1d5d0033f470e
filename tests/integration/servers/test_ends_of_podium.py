"""However Podium ends, all processes of its servers end too, and the next start finds the state."""

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
from tests.integration.servers.process_tree import alive, below, until

ROOT = Path(__file__).resolve().parents[3]


@contextlib.asynccontextmanager
async def a_podium(data_dir: Path, environ: dict[str, str]) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process that runs private servers, in its own process group as from a shell, and the URL of its database."""
    command = [sys.executable, "-m", "tests.integration.servers.servers_program", str(data_dir)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environ, stdout=asyncio.subprocess.PIPE, process_group=0
    )
    assert process.stdout is not None
    try:
        yield process, json.loads(await process.stdout.readline())["database_url"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_hard_kill_leaves_no_process_and_no_lock(data_dir: Path) -> None:
    """After SIGKILL both servers shut down by themselves, and an immediate new start waits for them."""
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


async def test_if_the_guards_are_killed_too_no_process_is_left(
    data_dir: Path, without_rabbitmq: dict[str, str]
) -> None:
    """For example after a kill of all Python processes."""
    async with a_podium(data_dir, without_rabbitmq) as (podium, _):
        processes = below(podium.pid)
        for pid in [podium.pid, *(pid for pid, name in processes.items() if name.startswith("python"))]:
            os.kill(pid, signal.SIGKILL)
        await podium.wait()
        await until(lambda: not alive(processes), "all processes have ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_shuts_the_servers_down_in_order(
    data_dir: Path, without_rabbitmq: dict[str, str], number: signal.Signals
) -> None:
    """Ctrl-C at a terminal reaches the whole process group; the servers are not members of it."""
    async with a_podium(data_dir, without_rabbitmq) as (podium, _):
        processes = below(podium.pid)
        os.killpg(podium.pid, number)
        await podium.wait()
        await until(lambda: not alive(processes), "all processes have ended")
    log = (data_dir / "logs" / "postgres.log").read_text()
    assert log.count("received fast shutdown request") == 1
    assert log.rstrip().endswith("database system is shut down")


async def test_a_stale_process_id_does_not_prevent_a_start(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """PostgreSQL itself refuses to start if postmaster.pid names another running process."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq) as servers:
        assert servers.postgres is not None
        pid_file = data_dir / "postgres" / "data" / "postmaster.pid"
        stale = pid_file.read_text()
        await servers.postgres.kill()
        pid_file.write_text(stale.replace(stale.partition("\n")[0], str(os.getppid()), 1))
        (data_dir / "podium.lock").write_text("1\n")
        await servers.postgres.start()
