import asyncio
from datetime import timedelta
from functools import partial

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.storage.database import Sessions
from services.storage.migrate import MigrationBlocked, _config, is_current, migrate
from tests.conftest import TestServers
from tests.support.databases import a_database
from tests.support.waiting import rows

# Alembic's comparison ignores CHECK constraints and the predicate of a partial index, so this compares the catalogs.
CATALOGUES = {
    "columns": """
        SELECT table_name, column_name, data_type, udt_name, is_nullable, column_default, is_identity,
            identity_generation, is_generated, collation_name
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
        ORDER BY table_name, column_name""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype::text, condeferrable, convalidated,
            pg_get_constraintdef(oid)
        FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conrelid <> to_regclass('alembic_version')
            OR connamespace = 'public'::regnamespace AND to_regclass('alembic_version') IS NULL
        ORDER BY 1, 2""",
    "indexes": """
        SELECT tablename, indexname, indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2""",
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, tgenabled::text, pg_get_triggerdef(oid)
        FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2""",
    "functions": """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace ORDER BY 1""",
    "sequences": """
        SELECT sequencename, data_type::text, start_value, increment_by, cycle FROM pg_sequences
        WHERE schemaname = 'public' ORDER BY 1""",
}


REVISIONS = [each.revision for each in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]
ROWS = """
INSERT INTO agents (name) VALUES ('bot');
INSERT INTO deployments (id, agent_id, status, status_changed_at, created_at, acp_url)
    SELECT 'v' || n, agents.id, 'Ready', now(), now(), 'http://h' FROM agents, generate_series(1, 1000) n;
UPDATE agents SET production_deployment_id = 'v1', generation = 1, event_seq = 1, status = 'Ready';
UPDATE deployments SET is_production = true, promoted_at = now() WHERE id = 'v1';
INSERT INTO promotions (agent_id, generation, cause, actor, to_deployment_id, to_acp_url, at)
    SELECT id, 1, 'first', 'podium', 'v1', 'http://h', now() FROM agents;
INSERT INTO outbox (event_id, type, agent_id, agent_name, subject, sequence, generation, payload)
    SELECT id, 'podium.deployment.promoted.v1', id, 'bot', 'v1', 1, 1, '{}' FROM agents;
INSERT INTO outbox_low_water (agent_id, sequence, xid, id) SELECT id, 0, '1', 0 FROM agents;
INSERT INTO registrations (message_id, agent_name, outcome) SELECT id, 'bot', 'Registered' FROM agents;
INSERT INTO parked (key, reason, error, routing_key, headers, body) VALUES ('k', 'malformed', 'e', 'agent.a', '{}', '')
"""
PROBED = "SELECT count(*), count(*) FILTER (WHERE is_production) FROM probes WHERE due_at <= now()"
# The file number of a table changes whenever the table is rewritten.
FILES = text("""
SELECT relname::text, pg_relation_filenode(oid) FROM pg_class
WHERE relname IN ('agents', 'deployments', 'promotions', 'outbox', 'registrations', 'parked') ORDER BY 1
""")


@pytest.mark.parametrize("revision", REVISIONS[:-1])
async def test_each_revision_is_upgraded_with_its_rows(
    servers: TestServers, modelled: AsyncEngine, revision: str
) -> None:
    """Beside open transactions that have read and written every table; no table is rewritten."""
    async with a_database(servers.database_url) as url:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            await connection.run_sync(partial(upgrade_to, revision=revision))
        async with engine.begin() as connection:
            for statement in ROWS.split(";"):
                await connection.execute(text(statement))
        async with engine.connect() as connection:
            files = (await connection.execute(FILES)).all()
        said: list[str] = []
        async with engine.connect() as other:
            await other.execute(text("UPDATE deployments SET status = 'Ready' WHERE id = 'v7'"))
            await other.execute(text("UPDATE agents SET description = 'changed'"))
            await other.execute(text("UPDATE registrations SET reason = 'changed'"))
            task = asyncio.create_task(migrate(engine, report=said.append))
            done, _ = await asyncio.wait([task], timeout=1.5)
            if not done:
                # Nobody queues behind the migration for longer than one attempt.
                async with asyncio.timeout(3):
                    await rows(Sessions(engine), "SELECT 1 FROM agents, deployments, registrations LIMIT 1")
            await other.commit()
        assert await task == (revision, REVISIONS[-1])
        async with engine.connect() as connection:
            assert (await connection.execute(FILES)).all() == files
            (changed,) = (await connection.execute(text("SELECT description FROM agents"))).scalars()
            assert changed == "changed"
        # Revision 0008 copies which deployment is in production; after it, the promoting statement writes it.
        assert await rows(Sessions(engine), PROBED) == [(1000, 1 if revision < "0008" else 0)]
        for catalogue in CATALOGUES:
            assert await _catalogue(engine, catalogue) == await _catalogue(modelled, catalogue)
        await engine.dispose()


async def test_a_migration_that_gets_no_lock_gives_up_and_leaves_nothing_half_done(servers: TestServers) -> None:
    """Its error says what to do, and the next one succeeds."""
    async with a_database(servers.database_url) as url:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            await connection.run_sync(partial(upgrade_to, revision="0001"))
        said: list[str] = []
        async with engine.connect() as other:
            await other.execute(text("SELECT 1 FROM agents"))
            with pytest.raises(MigrationBlocked, match="lock"):
                await migrate(engine, report=said.append, max_wait=timedelta(seconds=0.5))
        assert "trying again" not in said
        assert await rows(Sessions(engine), "SELECT version_num FROM alembic_version") == [("0001",)]
        assert await migrate(engine) == ("0001", REVISIONS[-1])
        await engine.dispose()


async def test_two_migrations_at_once_wait_for_each_other(servers: TestServers) -> None:
    """One does the work, however long it takes, and the other finds it done."""
    async with a_database(servers.database_url) as url:
        engine = create_async_engine(url)
        said: list[str] = []
        found = await asyncio.gather(*(migrate(engine, report=said.append) for _ in range(2)))
        assert sorted(found, key=str) == [(REVISIONS[-1], REVISIONS[-1]), (None, REVISIONS[-1])]
        assert said == ["Another process is migrating this database; waiting for it."]
        await engine.dispose()


def upgrade_to(connection: Connection, revision: str) -> None:
    """Upgrade an empty database to a revision."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def _catalogue(engine: AsyncEngine, name: str) -> list[tuple[object, ...]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(CATALOGUES[name]))]


@pytest.mark.parametrize("catalogue", CATALOGUES)
async def test_models_and_migrations_make_the_same_schema(
    migrated: AsyncEngine, modelled: AsyncEngine, catalogue: str
) -> None:
    """The models equal a migrated database, including checks, index predicates and triggers."""
    found = [await _catalogue(engine, catalogue) for engine in (migrated, modelled)]
    assert found[0] == found[1]
    assert found[0], f"no {catalogue} were found at all"


async def test_migrating_again_changes_nothing(engine: AsyncEngine) -> None:
    """`podium migrate` can run any number of times."""
    before, after = await migrate(engine)
    assert before == after
    assert await is_current(engine)


async def test_a_database_that_was_not_migrated_is_not_current(modelled: AsyncEngine) -> None:
    """Without the schema, `is_current` is false, so readiness can report it."""
    assert not await is_current(modelled)
