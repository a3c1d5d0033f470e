import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from pydantic import SecretStr
from pydantic_core import from_json
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from podium.servers import private_servers
from podium.servers.binaries import find_postgres
from services.domain.caller import Caller
from services.events.log import remove_published
from services.promotion.promote import promote
from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.support.documents import blocks, documented_command
from tests.support.factories import a_body, incoming
from tests.support.invariants import assert_invariants
from tests.support.processes import ROOT, api_process, environment, worker_process
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


async def use_transaction_ids(sessions: Sessions, number: int) -> None:
    """Have the cluster assign this many transaction ids, as one does that has run for a while."""
    async with sessions() as session:
        connection = await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        await connection.execute(
            text("DO $$ BEGIN FOR i IN 1..%d LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$" % number)  # noqa: UP031 - SQL with braces
        )


async def cursor_now(api: str) -> str:
    """The cursor that the list of agents answers."""
    async with aiohttp.ClientSession() as client, client.get(f"{api}/agents") as answer:
        return answer.headers["x-podium-cursor"]


async def next_event(stream: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next event of a stream."""
    async with asyncio.timeout(10):
        while True:
            line = await stream.content.readline()
            assert line, "the stream ended"
            if line.startswith(b"data:"):
                event: dict[str, Any] = from_json(line[5:])
                return event


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


@pytest.mark.usefixtures("broker")
async def test_a_restore_into_a_new_cluster_serves_event_streams(
    sessions: Sessions, settings: Settings, tmp_path: Path, folder: Path
) -> None:
    """The new cluster's transaction ids are far below those in the backup, yet no event is lost or refused (G45)."""
    await use_transaction_ids(sessions, 3_000)
    await register(sessions, "v1", "v2")
    async with api_process(settings, tmp_path) as api:
        old_cursor = await cursor_now(api)
    await in_transaction(sessions, lambda session: session.execute(text("UPDATE outbox SET published_at = now()")))
    an_hour_on = datetime.now(UTC) + timedelta(hours=1)
    await in_transaction(sessions, lambda session: remove_published(session, an_hour_on, limit=2))
    left = [row.event_id for row in await rows(sessions, "SELECT event_id FROM outbox ORDER BY id")]
    run_documented("pg_dump", settings, tmp_path)

    environ = {**os.environ, "PODIUM_AMQP_URL": settings.amqp_url.get_secret_value()}
    async with private_servers(folder, durable=False, environ=environ) as new:
        restored = settings.model_copy(update={"database_url": SecretStr(new.database_url)})
        run_documented("pg_restore", restored, tmp_path)
        async with api_process(restored, tmp_path) as api, worker_process(restored, tmp_path, "relay registrar"):
            cursor = await cursor_now(api)
            async with aiohttp.ClientSession() as client, client.get(f"{api}/events?since={cursor}") as live:
                assert live.status == 200
                async with client.post(f"{api}/agents/register", json=a_body("bot", deployment_id="v3")) as answer:
                    assert answer.status == 200
                created = await next_event(live)
                ready = await next_event(live)
            assert (created["subject"], created["type"]) == ("v3", "podium.deployment.created.v1")
            async with aiohttp.ClientSession() as client:
                async with client.get(f"{api}/events", params={"since": "oldest", "follow": "false"}) as oldest:
                    events = [
                        from_json(line[5:]) for line in (await oldest.read()).splitlines() if line[:5] == b"data:"
                    ]
                async with client.get(f"{api}/events", params={"since": old_cursor}) as refused:
                    assert (refused.status, (await refused.json())["type"].split(":")[-1]) == (410, "events-removed")
        assert [UUID(event["id"]) for event in events] == [*left, UUID(created["id"]), UUID(ready["id"])]
        assert [int(event["sequence"]) for event in events] == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("query", blocks(OPERATIONS, "sql"))
async def test_the_monitoring_queries_can_be_run(sessions: Sessions, query: str) -> None:
    """Each query of the operations guide fits the current schema."""
    await rows(sessions, query)
