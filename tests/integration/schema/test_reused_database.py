"""Tests that follow each other on one database: each gets what a fresh clone has."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import TestServers
from tests.integration.schema.test_models_and_migrations import CATALOGUES
from tests.support import reused_databases as module
from tests.support.reused_databases import ReusedDatabases, reused_databases

FILL = """
INSERT INTO agents (name) VALUES ('bot');
INSERT INTO deployments (id, agent_id, status, status_changed_at, created_at, acp_url)
    SELECT 'v1', id, 'Ready', now(), now(), 'http://h' FROM agents;
UPDATE deployments SET is_production = true, promoted_at = now();
UPDATE agents SET production_deployment_id = 'v1', generation = 1, event_seq = 1, status = 'Ready';
INSERT INTO promotions (agent_id, generation, cause, actor, to_deployment_id, to_acp_url, at)
    SELECT id, 1, 'first', 'podium', 'v1', 'http://h', now() FROM agents;
INSERT INTO outbox (event_id, type, agent_id, agent_name, subject, sequence, generation, payload)
    SELECT id, 'podium.deployment.promoted.v1', id, 'bot', 'v1', 1, 1, '{}' FROM agents;
INSERT INTO outbox_low_water (agent_id, sequence, xid, id) SELECT id, 0, '1', 0 FROM agents;
INSERT INTO registrations (message_id, agent_name, outcome) SELECT id, 'bot', 'Registered' FROM agents;
INSERT INTO parked (key, reason, error, routing_key, headers, body) VALUES ('k', 'malformed', 'e', 'agent.a', '{}', '');
INSERT INTO event_epochs (epoch) VALUES (0);
INSERT INTO janitors (id, name) SELECT id, 'j' FROM agents;
INSERT INTO instances (deployment_id, instance_id, agent_id, acp_url, rpc_path, health_path, status,
        status_changed_at, registered_at, registered_message_id, created_at)
    SELECT 'v1', 'a', id, 'http://h', '/api', '/healthz', 'Pending', now(), now(), id, now() FROM agents;
INSERT INTO departed_instances (agent_name, deployment_id, instance_id, registered_at, message_id)
    SELECT 'bot', 'v1', 'b', now(), id FROM agents;
INSERT INTO conversations (agent_id, key_sha256, deployment_id)
    SELECT id, sha256('c'), 'v1' FROM agents;
INSERT INTO audit (actor, action, subject) VALUES ('podium', 'agent.deleted', 'bot');
INSERT INTO keys (name, scopes, secret_sha256, hint, created_by) VALUES ('k', '{read}', sha256('s'), 'h', 'podium');
UPDATE keys SET revoked_at = now();
INSERT INTO call_counts SELECT id, now(), 'v1', id, 3, 1, 1, 2, 0.5, 0.4 FROM agents;
INSERT INTO webhooks (id, url, secret, cursor_xid, cursor_id, created_by)
    SELECT id, 'https://h', sha256('s'), '3', 0, 'podium' FROM agents;
INSERT INTO webhook_positions (webhook_id, agent_id, sequence, last_sequence) SELECT id, id, 0, 1 FROM agents;
INSERT INTO webhook_deliveries (webhook_id, event_id, event_type, agent_id, agent_name, sequence, attempt, outcome,
        status, detail, seconds)
    SELECT id, id, 't', id, 'bot', 1, 1, 'accepted', 200, 'ok', 0.1 FROM agents;
"""
TABLES = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
SEQUENCES = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S'"
# Beside what models and migrations have in common.
MORE_CATALOGUES = {
    "relations": """
        SELECT relname, relkind::text, relowner, relacl::text, reloptions::text, reltuples, relallvisible
        FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1""",
    "schemas": "SELECT nspname, nspowner, nspacl::text FROM pg_namespace ORDER BY 1",
    "functions": "SELECT oid, proname, proowner, proacl::text FROM pg_proc ORDER BY 1",
    "defaults": "SELECT * FROM pg_default_acl",
    "statistics": "SELECT tablename FROM pg_stats WHERE schemaname = 'public'",
    "comments": "SELECT * FROM pg_description ORDER BY 1, 2, 3",
    "large objects": "SELECT oid FROM pg_largeobject_metadata",
    "settings": "SELECT setconfig FROM pg_db_role_setting WHERE setdatabase <> 0",
    "database": """
        SELECT datdba, encoding, datistemplate, datallowconn, datconnlimit, dattablespace, datacl::text
        FROM pg_database WHERE datname = current_database()""",
    "sessions": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "locks": "SELECT pid FROM pg_locks WHERE locktype = 'advisory'",
}
CHANGES = {
    "a column": "ALTER TABLE agents ADD COLUMN mine int",
    "a table": "CREATE TABLE mine ()",
    "a schema": "CREATE SCHEMA mine",
    "an index": "DROP INDEX audit_agent_name_id_idx",
    "a constraint": "ALTER TABLE promotions ADD CONSTRAINT mine CHECK (generation < 10) NOT VALID",
    "a name": "ALTER TABLE agents RENAME TO away",
    "a disabled trigger": "ALTER TABLE promotions DISABLE TRIGGER USER",
    "a function": "CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql "
    "AS 'BEGIN RETURN NULL; END'",
    "a function that is gone": "DROP FUNCTION audit_is_append_only() CASCADE",
    "a sequence": "ALTER SEQUENCE outbox_id_seq INCREMENT 2",
    "a right": "GRANT SELECT ON agents TO PUBLIC",
    "a right on the schema": "REVOKE USAGE ON SCHEMA public FROM PUBLIC",
    "a right on the database": "REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
    "a setting of the database": "ALTER DATABASE {name} SET default_transaction_read_only = on",
    "a limit of the database": "ALTER DATABASE {name} CONNECTION LIMIT 5",
    "a comment": "COMMENT ON TABLE agents IS 'mine'",
    "a large object": "SELECT lo_create(0)",
    "a truncated table": "TRUNCATE parked",
    "another revision": "UPDATE alembic_version SET version_num = '0001'",
    "no revision": "DELETE FROM alembic_version",
    # Last: neither is rolled back.
    "much data": "INSERT INTO parked (key, reason, error, routing_key, headers, body) "
    "SELECT n::text, 'malformed', 'e', 'agent.a', '{{}}', '' FROM generate_series(1, 1000) AS n",
    "statistics": "ANALYZE keys_version",
}


@pytest_asyncio.fixture(scope="module")
async def pool(servers: TestServers, template: str) -> AsyncIterator[ReusedDatabases]:
    """Databases of these tests alone."""
    async with reused_databases(servers.database_url, template) as pool:
        yield pool


async def contents(pool: ReusedDatabases, name: str) -> dict[str, Any]:
    """All rows, the state of all sequences, and the schema with everything that is set on it."""
    async with pool.connected(name) as connection:
        seen = {
            f"sequence {each}": await connection.fetch(f"SELECT last_value, is_called FROM {each}")
            for (each,) in await connection.fetch(SEQUENCES)
        }
        for (each,) in await connection.fetch(TABLES):
            seen[f"table {each}"] = await connection.fetch(f"SELECT * FROM {each}")
        for each, query in {**CATALOGUES, **MORE_CATALOGUES}.items():
            seen[f"{each} of {'both' if each in CATALOGUES else 'databases'}"] = await connection.fetch(query)
    return seen


async def number(pool: ReusedDatabases, name: str) -> int:
    """What stays the same when a database gets another name."""
    async with pool.connected(name) as connection:
        found: int = await connection.fetchval("SELECT oid::int FROM pg_database WHERE datname = current_database()")
    return found


async def test_a_reused_database_is_like_a_fresh_clone(pool: ReusedDatabases) -> None:
    """Every table had rows, every sequence was used, twice; rows, sequences and schema equal those of a clone."""
    used = await pool.take()
    first = await number(pool, used)
    for _ in range(2):
        async with pool.connected(used) as connection:
            await connection.execute(FILL)
            assert await connection.fetchval("SELECT version FROM keys_version") > 0
        filled = await contents(pool, used)
        assert all(rows for what, rows in filled.items() if what.startswith("table "))
        assert all(rows[0]["is_called"] for what, rows in filled.items() if what.startswith("sequence "))
        assert await pool.give_back(used) == frozenset()
        used = await pool.take()
    clone = await pool.take()
    assert first == await number(pool, used) != await number(pool, clone)
    assert await contents(pool, used) == await contents(pool, clone)
    for each in (used, clone):
        assert await pool.give_back(each) == frozenset()


async def test_nothing_is_reached_under_the_earlier_name(pool: ReusedDatabases) -> None:
    """A program that a test has forgotten, and that connects again later, does not disturb the next test."""
    earlier = await pool.take()
    await pool.give_back(earlier)
    await pool.give_back(await pool.take())
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        async with pool.connected(earlier):
            pass


async def test_what_else_has_changed_is_noticed(pool: ReusedDatabases, subtests: pytest.Subtests) -> None:
    """Whatever a test could leave behind beside rows."""
    name = await pool.take()
    async with pool.connected(name) as connection:
        for what, change in CHANGES.items():
            with subtests.test(what):
                before = await pool.changed(connection)
                transaction = connection.transaction()
                await transaction.start()
                await connection.execute(change.format(name=name))
                assert await pool.changed(connection) > before
                await transaction.rollback()
    assert await pool.give_back(name) == {"size", "statistics"}


@pytest.mark.parametrize("change", [CHANGES["a disabled trigger"], "CREATE SCHEMA mine"])
async def test_a_changed_database_is_dropped(pool: ReusedDatabases, change: str) -> None:
    """The next test gets a fresh clone."""
    name = await pool.take()
    async with pool.connected(name) as connection:
        await connection.execute(change)
    assert await pool.give_back(name)
    following = await pool.take()
    async with pool.connected(following) as connection:
        assert not await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", name)
        assert await pool.changed(connection) == frozenset()
    assert await pool.give_back(following) == frozenset()


async def test_a_session_that_stays_open_ends_with_its_test(
    pool: ReusedDatabases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its advisory lock and its transaction. The next test gets another database."""
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)
    name = await pool.take()
    async with pool.connected(name) as left:
        await left.execute("SELECT pg_advisory_lock(1); BEGIN; INSERT INTO agents (name) VALUES ('bot')")
        assert await pool.give_back(name) == {"sessions"}
        following = await pool.take()
        assert (await contents(pool, following))["locks of databases"] == []
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await left.execute("COMMIT")
    assert await pool.give_back(following) == frozenset()
