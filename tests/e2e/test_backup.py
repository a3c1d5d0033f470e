import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from podium.servers.binaries import find_postgres
from services.promotion.promote import Caller, promote
from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.support.documents import blocks, documented_command
from tests.support.factories import incoming
from tests.support.invariants import assert_invariants
from tests.support.processes import ROOT, environment
from tests.support.waiting import rows

OPERATIONS = ROOT / "docs" / "operations.md"
TABLES = ("agents", "deployments", "registrations", "promotions", "outbox", "parked")


def run_documented(containing: str, settings: Settings, folder: Path) -> None:
    """Run the documented block of commands that contains this text, with the programs of this PostgreSQL."""
    found = find_postgres(os.environ)
    if found is None:
        pytest.skip("the servers are containers; their programs are not on this machine")
    env = environment(settings)
    env["PATH"] = f"{found.bin_dir}:{Path(sys.executable).parent}:{env['PATH']}"
    command = documented_command(OPERATIONS, containing)
    done = subprocess.run(["sh", "-euc", command], cwd=folder, env=env, capture_output=True, text=True, check=False)  # noqa: S607 - the shell of the reader
    assert done.returncode == 0, done.stderr


async def contents(sessions: Sessions) -> dict[str, list[str]]:
    """All rows of all tables, as text."""
    return {
        table: [row.row for row in await rows(sessions, f"SELECT t::text AS row FROM {table} t ORDER BY 1")]
        for table in TABLES
    }


async def register(sessions: Sessions, *deployment_ids: str) -> None:
    """Register deployments of one agent; the first goes to production."""
    batch = [incoming("bot", deployment_id=each) for each in deployment_ids]
    await in_transaction(sessions, lambda session: register_batch(session, batch))


@pytest.mark.usefixtures("broker")
async def test_a_documented_backup_can_be_restored(sessions: Sessions, settings: Settings, tmp_path: Path) -> None:
    """All rows are as at the backup, later changes are gone, and Podium works with the restored database."""
    await register(sessions, "v1", "v2", "v3")
    ((agent_id,),) = await rows(sessions, "SELECT id FROM agents")
    await in_transaction(sessions, lambda session: promote(session, agent_id, "v2", Caller(actor="test")))
    backed_up = await contents(sessions)
    run_documented("pg_dump", settings, tmp_path)
    await in_transaction(sessions, lambda session: promote(session, agent_id, "v3", Caller(actor="test")))
    await register(sessions, "v4")

    run_documented("pg_restore", settings, tmp_path)
    assert await contents(sessions) == backed_up
    await in_transaction(sessions, lambda session: promote(session, agent_id, "v3", Caller(actor="test")))
    assert await rows(sessions, "SELECT generation FROM agents") == [(3,)]
    async with sessions() as session:
        await assert_invariants(session)
        with pytest.raises(DBAPIError, match="append"):
            await session.execute(text("DELETE FROM promotions"))


@pytest.mark.parametrize("query", blocks(OPERATIONS, "sql"))
async def test_the_monitoring_queries_can_be_run(sessions: Sessions, query: str) -> None:
    """Each query of the operations guide fits the current schema."""
    await rows(sessions, query)
