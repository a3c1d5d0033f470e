import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.storage.migrate import is_current, migrate

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


@pytest.mark.parametrize("catalogue", CATALOGUES)
async def test_models_and_migrations_make_the_same_schema(
    migrated: AsyncEngine, modelled: AsyncEngine, catalogue: str
) -> None:
    """The models equal a migrated database, including checks, index predicates and triggers."""
    found = []
    for engine in (migrated, modelled):
        async with engine.connect() as connection:
            found.append([tuple(row) for row in await connection.execute(text(CATALOGUES[catalogue]))])
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
