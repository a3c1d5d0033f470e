"""A dead letter is moved into the table of parked messages, and stays nowhere else."""

import asyncio
from typing import Any

import pytest_asyncio
from aio_pika import Message
from aio_pika.abc import AbstractConnection
from pydantic_core import from_json, to_json
from sqlalchemy import text

from contracts import topology
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.workers.conftest import working
from tests.support.broker import publish, ready_messages
from tests.support.factories import a_body
from tests.support.waiting import eventually, eventually_rows
from workers.amqp.topology import declare
from workers.runner import run_drainer

DELIVERY_LIMIT = 2
LOCK = text("LOCK TABLE parked IN EXCLUSIVE MODE")
WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest_asyncio.fixture
async def low_limit_broker(broker: AbstractConnection, settings: Settings) -> AbstractConnection:
    """A broker whose registrations queue dead-letters a message after three deliveries."""
    await (await broker.channel()).queue_delete(topology.REGISTRATIONS_QUEUE)
    await declare(settings.model_copy(update={"delivery_limit": DELIVERY_LIMIT}))
    return broker


async def dead_letter_one(broker: AbstractConnection) -> None:
    """Consume and requeue the only message until the broker dead-letters it."""
    channel = await broker.channel()
    queue = await channel.get_queue(topology.REGISTRATIONS_QUEUE)
    requeued = 0

    async def dead() -> bool:
        nonlocal requeued
        message = await queue.get(fail=False)
        if message is not None:
            await message.nack(requeue=True)
            requeued += 1
        return requeued > DELIVERY_LIMIT

    await eventually(dead, "a message that has reached the delivery limit")


async def test_a_dead_letter_is_parked_whole(
    low_limit_broker: AbstractConnection, settings: Settings, sessions: Sessions
) -> None:
    """Reason, key, agent, id and body are kept, and the broker's x-death header too; the queue is empty afterwards."""
    body = a_body("bot", deployment_id="v1")
    await publish(low_limit_broker, body, headers={"traceparent": "00-1-2-3"})
    await dead_letter_one(low_limit_broker)
    async with working(run_drainer, settings), working(run_drainer, settings):
        (row,) = await eventually_rows(sessions, "SELECT * FROM parked")
        await _emptied(low_limit_broker)
    assert (row.reason, row.routing_key) == ("dead-lettered", "agent.bot")
    assert (row.agent_name, row.deployment_id, str(row.message_id)) == ("bot", "v1", body["message_id"])
    assert "(delivery_limit)" in row.error
    assert from_json(bytes(row.body)) == body
    assert row.headers["traceparent"] == "00-1-2-3"
    assert row.headers["x-death"][0]["queue"] == topology.REGISTRATIONS_QUEUE


BODIES: dict[str, Any] = {"no JSON": b"\xff{", "empty": b"", "another one": b"{}"}


async def test_each_dead_letter_has_a_row_of_its_own(
    broker: AbstractConnection, settings: Settings, sessions: Sessions
) -> None:
    """Also an invalid one. The same message twice is one row; two messages of one deployment are two rows."""
    twice = a_body("bot", deployment_id="v1")
    channel = await broker.channel()
    for body in (*BODIES.values(), to_json(twice), to_json(twice), to_json(a_body("bot", deployment_id="v1"))):
        await channel.default_exchange.publish(Message(body), topology.PARKED_QUEUE)
    async with working(run_drainer, settings):
        await _emptied(broker)
        found = await eventually_rows(sessions, "SELECT body FROM parked", 5)
    assert len(found) == 5
    assert {bytes(row.body) for row in found} > set(BODIES.values())


async def test_a_drainer_that_ends_before_its_commit_leaves_the_message(
    broker: AbstractConnection, settings: Settings, sessions: Sessions
) -> None:
    """It acknowledges only after the commit: while the table is locked, cancelled drainers lose nothing."""
    channel = await broker.channel()
    await channel.default_exchange.publish(Message(b"{"), topology.PARKED_QUEUE)
    async with sessions() as holder, holder.begin():
        await holder.execute(LOCK)
        for _ in range(3):
            drainer = asyncio.ensure_future(run_drainer(settings, asyncio.Event()))
            await eventually_rows(sessions, WAITING)
            drainer.cancel()
            await asyncio.wait({drainer})
    async with working(run_drainer, settings):
        await eventually_rows(sessions, "SELECT 1 FROM parked")
        await _emptied(broker)


REFUSED = 25


async def test_dead_letters_that_cannot_be_parked_do_not_stop_the_others(
    broker: AbstractConnection, settings: Settings, sessions: Sessions
) -> None:
    """G26: the database refuses many of them; those behind them are parked, and the refused ones stay in the queue."""
    async with sessions.begin() as session:
        await session.execute(REFUSE_FUNCTION)
        await session.execute(REFUSE)
    channel = await broker.channel()
    for number in range(REFUSED):
        await channel.default_exchange.publish(Message(f"refused {number}".encode()), topology.PARKED_QUEUE)
    await channel.default_exchange.publish(Message(b"another one"), topology.PARKED_QUEUE)
    async with working(run_drainer, settings):
        (row,) = await eventually_rows(sessions, "SELECT body FROM parked")
    assert bytes(row.body) == b"another one"

    async def back() -> bool:
        return await ready_messages(broker, topology.PARKED_QUEUE) == REFUSED

    await eventually(back, "the refused dead letters are in the queue")


REFUSE_FUNCTION = text("""
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.body LIKE 'refused%' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$
""")
REFUSE = text("CREATE TRIGGER refuse BEFORE INSERT ON parked FOR EACH ROW EXECUTE FUNCTION refuse()")


async def _emptied(broker: AbstractConnection) -> None:
    async def empty() -> bool:
        return await ready_messages(broker, topology.PARKED_QUEUE) == 0

    await eventually(empty, "no dead letter is left")
