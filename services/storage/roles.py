"""Two roles of PostgreSQL: one owns the schema and migrates it, the other runs Podium and cannot change the schema.

The role that runs Podium can neither change nor remove rows of append-only tables. Whoever migrates takes those rights
from every role but the owner, also for tables that a later version adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.storage.models import Base

# What is written once, and never changed or removed: a new table of that kind belongs here.
APPEND_ONLY = ("promotions", "audit")
# Written by migrations alone.
OF_MIGRATIONS = ("alembic_version",)

# By table: what no role but the owner may have.
_FORBIDDEN = {
    **dict.fromkeys(APPEND_ONLY, ("UPDATE", "DELETE", "TRUNCATE")),
    **dict.fromkeys(OF_MIGRATIONS, ("INSERT", "UPDATE", "DELETE", "TRUNCATE")),
}

_GRANTED = text("""
SELECT DISTINCT c.relname AS name, a.privilege_type AS privilege,
    CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee
FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
WHERE c.relnamespace = to_regnamespace(current_schema()) AND c.relname = ANY(CAST(:tables AS text[]))
    AND a.grantee <> c.relowner
ORDER BY 1, 2, 3
""")

_CREATE = """\
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
        CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
    END IF;
END $$"""
# Who is no superuser may only give objects to roles of which it is a member.
_JOIN = """\
DO $$ BEGIN
    IF NOT pg_has_role(current_user, '{migrate}', 'MEMBER') THEN
        GRANT {migrate} TO CURRENT_USER;
    END IF;
END $$"""
_CONNECT = """\
DO $$ BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO {migrate}, {run}', current_database());
END $$"""
# Podium's tables alone: others may live in the same schema. Sequences of columns follow their tables.
_OWN = """\
DO $$ DECLARE thing record; BEGIN
    FOR thing IN SELECT c.oid::regclass AS name FROM pg_class AS c
        WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind = 'r'
            AND c.relname IN ({tables})
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO {migrate}', thing.name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO {run}', thing.name);
    END LOOP;
    FOR thing IN SELECT DISTINCT t.tgfoid::regprocedure AS name
        FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE c.relnamespace = '{schema}'::regnamespace AND NOT t.tgisinternal
            AND c.relname IN ({tables})
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO {migrate}', thing.name);
    END LOOP;
END $$"""
_REVOKE = """\
DO $$ BEGIN
    IF to_regclass('{schema}.{table}') IS NOT NULL THEN
        REVOKE {privileges} ON {schema}.{table} FROM {run};
    END IF;
END $$"""


_MAY_ON_TABLE = text("SELECT has_table_privilege(CAST(:run AS name), to_regclass(:table), CAST(:privilege AS text))")
_MAY_ELSE = text("""
SELECT has_schema_privilege(CAST(:run AS name), CAST(:schema AS text), 'CREATE'),
    pg_has_role(CAST(:run AS name), CAST(:migrate AS name), 'MEMBER')
""")


@dataclass(frozen=True, slots=True)
class Roles:
    """The names of both roles, and the schema. They are put into statements as they are: check them before."""

    migrate: str = "podium_migrate"
    run: str = "podium_run"
    schema: str = "public"


def statements(roles: Roles) -> list[str]:
    """The statements that make both roles, for a superuser or the owner of the tables with CREATEROLE. May be repeated.

    They work before and after the first migration. Tables of later migrations get their rights by default.
    """
    names = {"migrate": roles.migrate, "run": roles.run, "schema": roles.schema}
    tables = ", ".join(f"'{name}'" for name in [*sorted(Base.metadata.tables), *OF_MIGRATIONS])
    by_default = f"ALTER DEFAULT PRIVILEGES FOR ROLE {roles.migrate} IN SCHEMA {roles.schema}"
    return [
        _CREATE.format(role=roles.migrate),
        _CREATE.format(role=roles.run),
        _JOIN.format(**names),
        _CONNECT.format(**names),
        f"REVOKE CREATE ON SCHEMA {roles.schema} FROM PUBLIC, {roles.run}",
        f"GRANT USAGE, CREATE ON SCHEMA {roles.schema} TO {roles.migrate}",
        f"GRANT USAGE ON SCHEMA {roles.schema} TO {roles.run}",
        _OWN.format(tables=tables, **names),
        f"{by_default} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {roles.run}",
        f"{by_default} GRANT USAGE ON SEQUENCES TO {roles.run}",
        *(
            _REVOKE.format(table=table, privileges=", ".join(privileges), **names)
            for table, privileges in _FORBIDDEN.items()
        ),
    ]


async def protect(connection: AsyncConnection) -> None:
    """Take from every role but the owner what it may not do to protected tables. For the owner, after a migration.

    Default privileges know no exceptions, so a new append-only table has too many until then.
    """
    for row in await connection.execute(_GRANTED, {"tables": list(_FORBIDDEN)}):
        if row.privilege in _FORBIDDEN[row.name]:
            await connection.execute(text(f"REVOKE {row.privilege} ON {row.name} FROM {row.grantee}"))


async def excess(connection: AsyncConnection, roles: Roles) -> Sequence[str]:
    """What the role that runs Podium may do and should not, for example since it inherits from another role."""
    names = {"run": roles.run, "migrate": roles.migrate, "schema": roles.schema}
    found = [
        f"{privilege} on {table}"
        for table, privileges in _FORBIDDEN.items()
        for privilege in privileges
        if await connection.scalar(
            _MAY_ON_TABLE, {"run": roles.run, "table": f"{roles.schema}.{table}", "privilege": privilege}
        )
    ]
    may_create, is_member = (await connection.execute(_MAY_ELSE, names)).one()
    found += [f"CREATE in {roles.schema}"] if may_create else []
    return [*found, f"everything that {roles.migrate} may do"] if is_member else found
