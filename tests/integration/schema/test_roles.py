"""The roles of `podium database-roles`: Podium works under them, and everything else is refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from podium.migration import migrate_all
from services.settings import Settings
from services.storage import roles as storage_roles
from services.storage.database import Sessions, close_engine, make_engine
from services.storage.migrate import migrate
from services.storage.roles import APPEND_ONLY, Roles, excess, statements
from tests.integration.api.client import running_api
from tests.integration.cli.terminal import Terminal
from tests.integration.workers.conftest import working
from tests.support.broker import publish
from tests.support.factories import a_body
from tests.support.waiting import eventually_rows, rows
from workers.runner import run_drainer, run_janitor, run_registrar, run_relay

PASSWORD = "a password of tests"


@dataclass(frozen=True)
class RolesOfTest:
    """Roles that this test alone uses, on its database."""

    roles: Roles
    administrator: Settings
    terminal: Terminal

    async def apply(self) -> None:
        """Run the command, and give both roles a password."""
        ran = await self.terminal.quick(
            "database-roles", "--migrate-role", self.roles.migrate, "--run-role", self.roles.run, "--apply"
        )
        assert ran.code == 0, ran
        for role in (self.roles.migrate, self.roles.run):
            await self.execute(f"ALTER ROLE {role} PASSWORD '{PASSWORD}'")

    async def execute(self, *queries: str) -> None:
        """Execute as the administrator."""
        engine = make_engine(self.administrator, application_name="tests", pool_size=1)
        async with engine.begin() as connection:
            for query in queries:
                await connection.execute(text(query))
        await close_engine(engine)

    def settings_of(self, role: str) -> Settings:
        """The settings of a process that uses this role."""
        url = make_url(self.administrator.database_url.get_secret_value()).set(username=role, password=PASSWORD)
        secret = SecretStr(url.render_as_string(hide_password=False))
        return self.administrator.model_copy(update={"database_url": secret})

    @asynccontextmanager
    async def engine_of(self, role: str) -> AsyncIterator[AsyncEngine]:
        """An engine that uses this role."""
        engine = make_engine(self.settings_of(role), application_name="tests", pool_size=2)
        try:
            yield engine
        finally:
            await close_engine(engine)


@pytest_asyncio.fixture
async def made(settings: Settings, tmp_path: Path) -> AsyncIterator[RolesOfTest]:
    """Roles of this test alone; they are dropped at its end."""
    unique = uuid4().hex[:12]
    roles = Roles(migrate=f"podium_migrate_{unique}", run=f"podium_run_{unique}")
    terminal = Terminal(tmp_path, {"PODIUM_DATABASE_URL": settings.database_url.get_secret_value()})
    made = RolesOfTest(roles, settings, terminal)
    yield made
    for role in (roles.run, roles.migrate):
        await made.execute(
            f"DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN "
            f"EXECUTE 'DROP OWNED BY {role} CASCADE'; EXECUTE 'DROP ROLE {role}'; END IF; END $$"
        )


@pytest.mark.parametrize("fresh", [True, False], ids=["before the first migration", "on an older installation"])
async def test_everything_runs_under_the_two_roles(
    made: RolesOfTest, broker: AbstractConnection, *, fresh: bool
) -> None:
    """G82: Migration under one role; registration, promote, rollback, deletion and retention under the other."""
    if fresh:
        await made.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    await made.apply()
    await migrate_all(made.settings_of(made.roles.migrate), lambda _: None)
    moment = timedelta(milliseconds=100)
    settings = made.settings_of(made.roles.run).model_copy(
        update={
            "sweep_interval": moment,
            "deleted_retention": timedelta(0),
            "inbox_retention": timedelta(0),
            "outbox_retention": timedelta(0),
            "parked_retention": timedelta(0),
            "production_versions_kept": 0,
        }
    )
    async with (
        made.engine_of(made.roles.run) as engine,
        running_api(settings) as api,
        working(run_registrar, settings),
        working(run_relay, settings),
        working(run_drainer, settings),
    ):
        sessions = Sessions(engine)
        for version in ("v1", "v2", "v3"):
            await publish(broker, a_body("bot", deployment_id=version))
        await publish(broker, b"no JSON", key="agent.bot")
        await eventually_rows(sessions, "SELECT 1 FROM deployments WHERE status = 'Ready'", 3)
        await eventually_rows(sessions, "SELECT 1 FROM parked")
        agent = (await api.get("/agents/name/bot")).json["id"]
        assert (await api.post(f"/agents/{agent}/deployments/v2/promote")).status == 200
        assert (await api.post(f"/agents/{agent}/rollback", json={"force": True})).status == 200
        assert (await api.delete(f"/agents/{agent}/deployments/v3")).status == 200
        doctor = await made.terminal.run(
            "doctor", "--json", PODIUM_DATABASE_URL=settings.database_url.get_secret_value()
        )
        verdicts = {check["verdict"] for check in doctor.json if check["part"] == "PostgreSQL"}
        assert "failed" not in verdicts, doctor.json
        async with working(run_janitor, settings):
            await eventually_rows(sessions, "SELECT 1 FROM deployments WHERE id = 'v3' AND purged_at IS NOT NULL")
            await eventually_rows(sessions, "SELECT 1 WHERE NOT EXISTS (SELECT FROM outbox)")
            await eventually_rows(sessions, "SELECT 1 WHERE NOT EXISTS (SELECT FROM registrations)")
            await eventually_rows(sessions, "SELECT 1 WHERE NOT EXISTS (SELECT FROM parked)")
        assert len(await rows(sessions, "SELECT 1 FROM promotions")) == 3
        assert await rows(sessions, "SELECT 1 FROM audit WHERE action LIKE 'deployment%'")


REFUSED = {
    "alter a table": "ALTER TABLE agents ADD COLUMN mine int",
    "drop a table": "DROP TABLE parked",
    "make a table": "CREATE TABLE mine ()",
    "make an index": "CREATE INDEX mine ON agents (name)",
    "make a trigger": "CREATE TRIGGER mine BEFORE INSERT ON agents "
    "FOR EACH ROW EXECUTE FUNCTION promotions_are_append_only()",
    "disable a trigger": "ALTER TABLE promotions DISABLE TRIGGER ALL",
    "switch triggers off": "SET session_replication_role = replica",
    "replace the trigger's function": "CREATE OR REPLACE FUNCTION promotions_are_append_only() RETURNS trigger "
    "LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "drop a constraint": "ALTER TABLE deployments DROP CONSTRAINT deployments_ready_has_address",
    "change the ledger": "UPDATE promotions SET actor = 'nobody'",
    "remove from the ledger": "DELETE FROM promotions",
    "empty the ledger": "TRUNCATE promotions",
    "change the audit log": "UPDATE audit SET actor = 'nobody'",
    "remove from the audit log": "DELETE FROM audit",
    "empty the audit log": "TRUNCATE audit",
    "lock the ledger for a change": "SELECT FROM promotions FOR UPDATE",
    "empty another table": "TRUNCATE parked",
    "pretend a migration": "UPDATE alembic_version SET version_num = '0001'",
    "become the owner": "SET ROLE {migrate}",
    "take a right": "GRANT UPDATE ON promotions TO {run}",
    "give itself rights": "ALTER ROLE {run} SUPERUSER",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_the_role_that_runs_cannot(made: RolesOfTest, name: str) -> None:
    """G82: The database itself refuses it, for want of a privilege and not only by a trigger."""
    await made.apply()
    query = REFUSED[name].format(migrate=made.roles.migrate, run=made.roles.run)
    async with made.engine_of(made.roles.run) as engine, engine.connect() as connection:
        if name == "take a right":
            # PostgreSQL only warns.
            await connection.execute(text(query))
            await connection.commit()
            assert not await excess(connection, made.roles)
            return
        with pytest.raises(ProgrammingError) as refused:
            await connection.execute(text(query))
    assert refused.value.orig is not None
    assert getattr(refused.value.orig, "sqlstate", None) == "42501"


async def test_tables_of_later_migrations_are_covered(made: RolesOfTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """G82: A new table can be used at once; a new append-only one cannot be changed once the migration has ended."""
    await made.apply()
    monkeypatch.setitem(storage_roles._FORBIDDEN, "later_audit", ("UPDATE", "DELETE", "TRUNCATE"))
    async with made.engine_of(made.roles.migrate) as engine:
        async with engine.begin() as connection:
            for table in ("later", "later_audit"):
                await connection.execute(text(f"CREATE TABLE {table} (id bigserial, note text)"))
        await migrate(engine)
    async with made.engine_of(made.roles.run) as engine:
        for table in ("later", "later_audit"):
            async with engine.begin() as connection:
                await connection.execute(text(f"INSERT INTO {table} (note) VALUES ('x')"))
                assert await connection.scalar(text(f"SELECT count(*) FROM {table}")) == 1
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE later SET note = 'y'"))
            await connection.execute(text("DELETE FROM later"))
        for change in ("UPDATE later_audit SET note = 'y'", "DELETE FROM later_audit", "TRUNCATE later_audit"):
            with pytest.raises(ProgrammingError, match="permission denied"):
                async with engine.begin() as connection:
                    await connection.execute(text(change))


async def test_migrating_takes_rights_that_somebody_gave(made: RolesOfTest) -> None:
    """G82: Also those of every role, which PostgreSQL calls PUBLIC."""
    await made.apply()
    await made.execute("GRANT UPDATE ON promotions TO PUBLIC", f"GRANT ALL ON promotions TO {made.roles.run}")
    async with made.engine_of(made.roles.migrate) as engine:
        await migrate(engine)
        async with engine.connect() as connection:
            assert not await excess(connection, made.roles)
            kept = text(f"SELECT has_table_privilege('{made.roles.run}', 'promotions', 'INSERT')")
            assert await connection.scalar(kept)


async def test_a_role_that_may_do_more_is_refused(made: RolesOfTest) -> None:
    """A superuser, or a member of the owner, is no role to run Podium: nothing is changed, and the reason is named."""
    options = ["--migrate-role", made.roles.migrate, "--run-role", made.roles.run]
    await made.execute(f"CREATE ROLE {made.roles.run} SUPERUSER")
    refused = await made.terminal.quick("database-roles", *options, "--apply")
    assert (refused.code, "UPDATE on promotions" in refused.error) == (5, True)
    engine = make_engine(made.administrator, application_name="tests", pool_size=1)
    assert not await rows(Sessions(engine), f"SELECT 1 FROM pg_roles WHERE rolname = '{made.roles.migrate}'")
    await close_engine(engine)


async def test_applying_again_changes_nothing(made: RolesOfTest) -> None:
    """Privileges and owners are the same after the second time."""
    acl = text(
        "SELECT relname, relowner::regrole::text, relacl::text "
        "FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
    )
    engine = make_engine(made.administrator, application_name="tests", pool_size=1)
    seen: list[Any] = []
    for _ in range(2):
        await made.apply()
        async with engine.connect() as connection:
            seen.append(sorted(map(tuple, await connection.execute(acl))))
    await close_engine(engine)
    assert seen[0] == seen[1]


async def test_the_printed_script_is_what_is_applied(made: RolesOfTest) -> None:
    """Printed for psql, in one transaction; with --json, statement by statement."""
    printed = await made.terminal.quick("database-roles")
    listed = await made.terminal.quick("database-roles", "--json")
    assert listed.json == statements(Roles())
    assert printed.out.startswith("BEGIN;\n")
    assert printed.out.endswith("COMMIT;\n")
    assert all(statement in printed.out for statement in listed.json)
    wrong = await made.terminal.quick("database-roles", "--run-role", "x; DROP TABLE agents")
    assert (wrong.code, "--run-role" in wrong.error) == (2, True)
    same = await made.terminal.quick("database-roles", "--run-role", "podium_migrate")
    assert same.code == 2


async def test_every_append_only_table_is_protected(sessions: Sessions) -> None:
    """G82: Whatever has triggers that refuse changes is in the list, and nothing else."""
    query = (
        "SELECT DISTINCT c.relname FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid "
        "JOIN pg_proc AS f ON f.oid = t.tgfoid WHERE f.proname LIKE '%append_only'"
    )
    assert {row.relname for row in await rows(sessions, query)} == set(APPEND_ONLY)
