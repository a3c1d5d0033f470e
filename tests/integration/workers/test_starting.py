"""Workers that start before the queues and the schema exist."""

from aio_pika.abc import AbstractConnection
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from contracts import topology
from services.settings import Settings
from services.storage.database import Sessions
from services.storage.migrate import migrate
from tests.integration.workers.conftest import working
from tests.support.broker import publish, ready_messages
from tests.support.factories import a_body
from tests.support.waiting import eventually, eventually_rows
from workers.amqp.topology import declare
from workers.runner import run_drainer, run_registrar, run_relay


async def test_workers_wait_for_the_queues(broker: AbstractConnection, settings: Settings, sessions: Sessions) -> None:
    """Workers that start before 'podium migrate' begin their work once it has declared the queues."""
    channel = await broker.channel()
    for queue in (topology.REGISTRATIONS_QUEUE, topology.PARKED_QUEUE):
        await channel.queue_delete(queue)
    await channel.exchange_delete(topology.EVENTS_EXCHANGE)
    async with working(run_registrar, settings), working(run_relay, settings), working(run_drainer, settings):
        await declare(settings)
        await publish(broker, a_body("bot", deployment_id="v1"))
        await eventually_rows(sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL", 4)


async def test_messages_wait_for_the_schema(
    broker: AbstractConnection, settings: Settings, engine: AsyncEngine, sessions: Sessions
) -> None:
    """While the tables are missing, no message is at fault: messages are not parked, and not redelivered."""
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
    await publish(broker, a_body("bot", deployment_id="v1"))
    with capture_logs() as logs:
        async with working(run_registrar, settings), working(run_relay, settings):

            async def tried_twice() -> bool:
                return [line["action"] for line in logs].count("registrar.database_away") >= 2

            await eventually(tried_twice, "two attempts")
            await migrate(engine)
            await eventually_rows(sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL", 4)
            (row,) = await eventually_rows(sessions, "SELECT outcome FROM registrations")
            assert row.outcome == "Registered"
    assert "registrar.disconnected" not in [line["action"] for line in logs]
    assert await ready_messages(broker, topology.PARKED_QUEUE) == 0
