"""Failures of the database that look like the fault of a message, and the other way round."""

from datetime import timedelta

import pytest
from aio_pika.abc import AbstractConnection
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.testing import capture_logs

from contracts import topology
from services.registration.batch import Decided, Incoming, Terms, register_batch, register_unlocked
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.workers.conftest import working
from tests.support.broker import publish, ready_messages
from tests.support.factories import a_body
from tests.support.waiting import eventually, eventually_rows, rows
from workers import retry
from workers.registrar import batches
from workers.runner import run_registrar

POISON = 7
MESSAGES = 20


async def break_inserts(sessions: Sessions, table: str, when: str, state: str) -> None:
    """Make the database fail with this SQLSTATE on inserts into a table."""
    async with sessions.begin() as session:
        await session.execute(
            text(f"""
            CREATE FUNCTION break_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN IF {when} THEN RAISE EXCEPTION 'broken' USING ERRCODE = '{state}'; END IF; RETURN NEW; END $$
            """)
        )
        await session.execute(
            text(f"CREATE TRIGGER break_ BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION break_{table}()")
        )


async def publish_all(broker: AbstractConnection) -> None:
    """Publish messages of as many agents, one of them with the deployment id `poison`."""
    for number in range(MESSAGES):
        await publish(broker, a_body(f"bot-{number}", deployment_id=f"v-{number}" if number != POISON else "poison"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between attempts."""
    monkeypatch.setattr(retry, "FIRST_BACKOFF_SECONDS", 0.002)


@pytest.mark.usefixtures("quick")
async def test_an_internal_error_of_the_database_parks_nothing(
    broker: AbstractConnection, sessions: Sessions, settings: Settings
) -> None:
    """However long it lasts: a server that cannot park a message either is at fault. Nothing is lost."""
    for table in ("deployments", "registrations", "parked"):
        await break_inserts(sessions, table, "EXISTS (SELECT FROM pg_namespace WHERE nspname = 'broken')", "XX000")
    async with sessions.begin() as session:
        await session.execute(text("CREATE SCHEMA broken"))
    await publish_all(broker)
    with capture_logs() as logs:
        async with working(run_registrar, settings):

            async def tried_often() -> bool:
                return [line["action"] for line in logs].count("database.failed") >= 3 * batches.ATTEMPTS_IN_DOUBT

            await eventually(tried_often, "more attempts than a message in doubt gets")
            async with sessions.begin() as session:
                await session.execute(text("DROP SCHEMA broken"))
            await eventually_rows(sessions, "SELECT 1 FROM deployments WHERE status = 'Ready'", MESSAGES)
    assert "registrar.disconnected" not in [line["action"] for line in logs]
    assert not await rows(sessions, "SELECT 1 FROM parked")


@pytest.mark.usefixtures("quick")
async def test_a_message_that_always_causes_an_internal_error_is_parked_alone(
    broker: AbstractConnection, sessions: Sessions, settings: Settings
) -> None:
    """It is parked after some attempts, because a page that only it needs may be damaged. The others are applied."""
    await break_inserts(sessions, "deployments", "NEW.id = 'poison'", "XX001")
    await publish_all(broker)
    with capture_logs() as logs:
        async with working(run_registrar, settings):
            await eventually_rows(sessions, "SELECT 1 FROM deployments", MESSAGES - 1)
            (row,) = await eventually_rows(sessions, "SELECT reason, agent_name, attempts FROM parked")
    assert (row.reason, row.agent_name, row.attempts) == ("unprocessable", f"bot-{POISON}", 1)
    failed = [line["action"] for line in logs].count("database.failed")
    assert failed >= batches.ATTEMPTS_IN_DOUBT
    assert await ready_messages(broker, topology.REGISTRATIONS_QUEUE) == 0


@pytest.mark.usefixtures("quick")
async def test_an_error_that_ends_after_the_last_attempt_parks_nothing(
    broker: AbstractConnection, sessions: Sessions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message is at fault only if it fails once more after the database was seen to work."""
    await break_inserts(sessions, "deployments", "EXISTS (SELECT FROM pg_namespace WHERE nspname = 'broken')", "XX000")
    async with sessions.begin() as session:
        await session.execute(text("CREATE SCHEMA broken"))
    attempts = 0

    async def repaired_after_last_attempt(session: AsyncSession, batch: list[Incoming], **more: Terms) -> list[Decided]:
        nonlocal attempts
        try:
            return await register_batch(session, batch, **more)
        except DBAPIError:
            attempts += 1
            if attempts == batches.ATTEMPTS_IN_DOUBT:
                async with sessions.begin() as repair:
                    await repair.execute(text("DROP SCHEMA broken"))
            raise

    monkeypatch.setattr(batches, "register_batch", repaired_after_last_attempt)
    await publish(broker, a_body("bot", deployment_id="v1"))
    async with working(run_registrar, settings):
        (row,) = await eventually_rows(sessions, "SELECT outcome FROM registrations")
    assert (row.outcome, attempts) == ("Registered", batches.ATTEMPTS_IN_DOUBT)


@pytest.mark.usefixtures("quick")
async def test_a_message_whose_agent_is_busy_is_kept(
    broker: AbstractConnection, sessions: Sessions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long another transaction locks the agent, the message is not parked or requeued, and is applied later."""
    attempts = 0

    async def counted(session: AsyncSession, batch: list[Incoming], **more: Terms) -> list[Decided | None]:
        nonlocal attempts
        attempts += 1
        return await register_unlocked(session, batch, **more)

    monkeypatch.setattr(batches, "register_unlocked", counted)
    impatient = settings.model_copy(update={"lock_timeout": timedelta(seconds=0.05)})
    with capture_logs() as logs:
        async with working(run_registrar, impatient):
            await publish(broker, a_body("bot", deployment_id="v1"))
            await eventually_rows(sessions, "SELECT 1 FROM deployments WHERE id = 'v1'")
            async with sessions() as holder, holder.begin():
                await holder.execute(text("SELECT 1 FROM agents WHERE name = 'bot' FOR UPDATE"))
                await publish(broker, a_body("bot", deployment_id="v2"))

                async def tried_often() -> bool:
                    return attempts > batches.ATTEMPTS_IN_DOUBT + 1

                await eventually(tried_often, "more attempts than a message in doubt gets")
            await eventually_rows(sessions, "SELECT 1 FROM deployments WHERE id = 'v2'")
    actions = [line["action"] for line in logs]
    assert "registrar.came_again" not in actions
    assert actions.count("registrar.deferred") == actions.count("registrar.deferred_decided") == 1
    assert not await rows(sessions, "SELECT 1 FROM parked")


@pytest.mark.usefixtures("quick")
async def test_a_message_that_always_takes_too_long_is_parked_alone(
    broker: AbstractConnection, sessions: Sessions, settings: Settings
) -> None:
    """G28: a statement timeout is tried again in smaller batches; the message that still causes it is parked."""
    async with sessions.begin() as session:
        await session.execute(
            text("""
            CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN IF NEW.id = 'poison' THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END $$
            """)
        )
        await session.execute(
            text("CREATE TRIGGER delay BEFORE INSERT ON deployments FOR EACH ROW EXECUTE FUNCTION delay()")
        )
    await publish_all(broker)
    impatient = settings.model_copy(update={"statement_timeout": timedelta(seconds=0.3)})
    async with working(run_registrar, impatient):
        await eventually_rows(sessions, "SELECT 1 FROM deployments", MESSAGES - 1)
        (row,) = await eventually_rows(sessions, "SELECT reason, agent_name, attempts FROM parked")
    assert (row.reason, row.agent_name, row.attempts) == ("unprocessable", f"bot-{POISON}", 1)
    assert await ready_messages(broker, topology.REGISTRATIONS_QUEUE) == 0
