"""PostgreSQL's disk is full: nothing is lost and nothing is parked; it goes on by itself once there is room."""

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

from tests.chaos.ground import Field, alone
from tests.chaos.traffic import all_events_in_order, pods_of, until_quiet
from tests.support.factories import a_body, incoming
from tests.support.processes import api_process
from tests.support.waiting import eventually, rows

SMALL, LARGE = "size=20m", "size=512m"
# In bytes, of random text, since PostgreSQL compresses.
BALLAST = 20_000
MESSAGES = 1_000
DECIDED = text("SELECT count(*) FROM registrations")
END_SESSIONS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name IN ('podium-registrar', 'podium-api')"
)


@pytest_asyncio.fixture
async def small_disk(field: Field) -> AsyncIterator[Path]:
    """This test's database is on a disk of 20 MB, most of which it has filled already."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    account = field.ground.postgres._context.account
    folder = field.ground.postgres._kind.folder.parent / "small"  # type: ignore[attr-defined]  # both kinds have one
    folder.mkdir()
    owner = f",uid={account.uid},gid={account.gid}" if account else ""
    mounted = _run("mount", "-t", "tmpfs", "-o", f"{SMALL}{owner},mode=0700", "podium-chaos", str(folder))
    if not mounted:
        pytest.skip("this machine allows no mount")
    name = field.database
    await alone(field.ground.postgres.url, f"CREATE TABLESPACE small LOCATION '{folder}'")
    await alone(field.ground.postgres.url, f'ALTER DATABASE "{name}" SET TABLESPACE small')
    yield folder
    await field.ground.postgres.start()
    await alone(field.ground.postgres.url, f'DROP DATABASE "{name}" WITH (FORCE)', "DROP TABLESPACE small")
    _run("umount", str(folder))


async def test_a_full_disk_loses_nothing(field: Field, small_disk: Path) -> None:
    """Messages wait in the queue; the API answers 503 to what writes, 200 to what reads, 503 once nothing can be read.

    That is when sessions end: on a full disk PostgreSQL begins no new one if it has to write its cache file first. It
    calls that an internal error (XX000), as if a statement were to fault_of.
    """
    messages = [
        incoming(
            f"bot-{n % 50}", deployment_id=f"v-{n}", registration_metadata={"ballast": os.urandom(BALLAST // 2).hex()}
        )
        for n in range(MESSAGES)
    ]
    engine = field.sessions.kw["bind"]
    async with (
        engine.execution_options(isolation_level="AUTOCOMMIT").connect() as kept,
        pods_of(field) as pods,
        field.worker(),
        api_process(field.settings, field.folder) as url,
        aiohttp.ClientSession() as web,
    ):
        await pods.publish(messages)
        await field.until_told("registrar.database_away", server="PostgreSQL")
        body = a_body(
            "late-bot", deployment_id="late-v1", registration_metadata={"ballast": os.urandom(BALLAST * 5).hex()}
        )
        async with web.post(f"{url}/agents/register", json=body) as refused:
            assert refused.status == 503
            assert refused.headers["retry-after"]
        async with web.get(f"{url}/agents") as read:
            assert read.status == 200
        await _until_no_session_begins(engine, small_disk)
        await kept.execute(END_SESSIONS)
        async with web.get(f"{url}/agents") as read:
            assert read.status == 503
        await field.until_told("database.failed")
        assert (await kept.execute(DECIDED)).scalar_one() < MESSAGES
        _run("mount", "-o", f"remount,{LARGE}", str(small_disk))
        await until_quiet(field, MESSAGES)
    assert not await rows(field.sessions, "SELECT 1 FROM parked")
    await all_events_in_order(field)


async def _until_no_session_begins(engine: AsyncEngine, disk: Path) -> None:
    """Nothing but room is missing: the next vacuum of a catalog would remove the file as well."""

    async def refused() -> bool:
        _replace_cache(disk)
        try:
            async with engine.connect():
                return False
        except InternalError as error:
            return "init file" in str(error)

    await eventually(refused, "no session can begin")


def _replace_cache(disk: Path) -> None:
    """The cache file is gone, and what room it took."""
    for cache in disk.glob("PG_*/*/pg_internal.init"):
        cache.unlink()
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as filler:
        while filler.write(bytes(1024)):
            pass


def _run(program: str, *arguments: str) -> bool:
    return subprocess.run([f"/bin/{program}", *arguments], check=False).returncode == 0
