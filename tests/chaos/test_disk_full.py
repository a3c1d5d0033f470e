"""PostgreSQL's disk is full: no message is lost or parked, and work continues by itself once there is space."""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import InternalError
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.chaos.system import System, run_outside_transaction
from tests.chaos.traffic import all_events_in_order, pods_of, until_quiet
from tests.support.factories import a_body, incoming
from tests.support.processes import api_process
from tests.support.waiting import eventually, rows

SMALL, LARGE = "size=20m", "size=512m"
# Bytes of random text per message. Random, because PostgreSQL compresses.
BALLAST = 20_000
MESSAGES = 1_000
LATE = 100
DECIDED = text("SELECT count(*) FROM registrations")
END_SESSIONS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name IN ('podium-registrar', 'podium-api')"
)


@pytest_asyncio.fixture
async def small_disk(system: System) -> AsyncIterator[Path]:
    """Move this test's database to a disk of 20 MB, which it nearly fills."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    account = system.servers.postgres._context.account
    folder = system.servers.postgres._kind.folder.parent / "small"  # type: ignore[attr-defined]  # both kinds have one
    folder.mkdir()
    owner = f",uid={account.uid},gid={account.gid}" if account else ""
    mounted = _run("mount", "-t", "tmpfs", "-o", f"{SMALL}{owner},mode=0700", "podium-chaos", str(folder))
    if not mounted:
        pytest.skip("this machine does not allow mounts")
    name = system.database
    await run_outside_transaction(system.servers.postgres.url, f"CREATE TABLESPACE small LOCATION '{folder}'")
    await run_outside_transaction(system.servers.postgres.url, f'ALTER DATABASE "{name}" SET TABLESPACE small')
    yield folder
    await system.servers.postgres.start()
    await run_outside_transaction(
        system.servers.postgres.url, f'DROP DATABASE "{name}" WITH (FORCE)', "DROP TABLESPACE small"
    )
    _run("umount", str(folder))


async def test_a_full_disk_loses_nothing(system: System, small_disk: Path) -> None:
    """Messages wait in the queue. The API answers 503 to writes, and 200 to reads until its sessions have ended.

    On a full disk PostgreSQL refuses a new session if it must first write its cache file. It reports that as an
    internal error (XX000), as if the statement were at fault.
    """
    messages = [
        incoming(
            f"bot-{n % 50}", deployment_id=f"v-{n}", registration_metadata={"ballast": os.urandom(BALLAST // 2).hex()}
        )
        for n in range(MESSAGES)
    ]
    engine = system.sessions.kw["bind"]
    async with (
        engine.execution_options(isolation_level="AUTOCOMMIT").connect() as admin,
        pods_of(system) as pods,
        system.worker(),
        api_process(system.settings, system.folder) as url,
        aiohttp.ClientSession() as web,
    ):
        # The session for reads opens with the first one.
        async with web.get(f"{url}/agents") as read:
            assert read.status == 200
        await pods.publish(messages)
        await system.until_logged("registrar.database_away", server="PostgreSQL")
        accepted = await _register_until_refused(web, url)
        await _until_sessions_are_refused(engine, small_disk)
        async with web.get(f"{url}/agents") as read:
            assert read.status == 200
        await admin.execute(END_SESSIONS)
        async with web.get(f"{url}/agents") as read:
            assert read.status == 503
        await system.until_logged("database.failed")
        assert (await admin.execute(DECIDED)).scalar_one() < MESSAGES
        _run("mount", "-o", f"remount,{LARGE}", str(small_disk))
        await until_quiet(system, MESSAGES + accepted)
    assert not await rows(system.sessions, "SELECT 1 FROM parked")
    await all_events_in_order(system)


async def _register_until_refused(web: aiohttp.ClientSession, url: str) -> int:
    """Register large deployments over HTTP until the API answers 503; returns how many were accepted before."""
    for number in range(LATE):
        ballast = {"ballast": os.urandom(BALLAST).hex()}
        body = a_body("late-bot", deployment_id=f"late-v{number}", registration_metadata=ballast)
        async with web.post(f"{url}/agents/register", json=body) as answer:
            if answer.status != 200:
                assert answer.status == 503
                assert answer.headers["retry-after"]
                return number
    raise AssertionError("the disk is not full")


async def _until_sessions_are_refused(engine: AsyncEngine, disk: Path) -> None:
    """Fill the disk until PostgreSQL refuses sessions.

    Removes the cache file, as the vacuum of a catalog does.
    """

    async def refused() -> bool:
        _replace_cache(disk)
        try:
            async with engine.connect():
                return False
        except InternalError as error:
            return "init file" in str(error)

    await eventually(refused, "PostgreSQL refuses a new session")


def _replace_cache(disk: Path) -> None:
    """Remove the cache files and fill the space that they used."""
    for cache in disk.glob("PG_*/*/pg_internal.init"):
        cache.unlink()
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as filler:
        while filler.write(bytes(1024)):
            pass


def _run(program: str, *arguments: str) -> bool:
    return subprocess.run([f"/bin/{program}", *arguments], check=False).returncode == 0
