import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractConnection
from pydantic_core import from_json, to_json
from sqlalchemy import text

from contracts import topology
from contracts.messages import REGISTRATION_MAX_BYTES
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.workers.conftest import working
from tests.support.amqp_wire import RawProperties, long_text, table
from tests.support.broker import publish, ready_messages
from tests.support.factories import a_body
from tests.support.waiting import eventually, eventually_rows, rows
from workers.runner import run_drainer, run_registrar

pytestmark = pytest.mark.usefixtures("broker")

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.usefixtures("registrar")
async def test_a_message_becomes_a_deployment_in_production(broker: AbstractConnection, sessions: Sessions) -> None:
    """A published message becomes a row in PostgreSQL, and the first deployment of an agent goes to production."""
    await publish(broker, a_body("bot", deployment_id="bot-v1"))
    (row,) = await eventually_rows(sessions, "SELECT status, is_production FROM deployments WHERE id = 'bot-v1'")
    assert (row.status, row.is_production) == ("Ready", True)


@pytest.mark.usefixtures("registrar")
async def test_a_message_delivered_three_times_has_one_effect(broker: AbstractConnection, sessions: Sessions) -> None:
    """Redelivery adds no inbox row, no ledger row and no event."""
    body = a_body("bot", deployment_id="bot-v1")
    for _ in range(3):
        await publish(broker, body)
    await publish(broker, a_body("last"))
    await eventually_rows(sessions, "SELECT 1 FROM agents WHERE name = 'last'")
    assert len(await rows(sessions, "SELECT 1 FROM registrations WHERE agent_name = 'bot'")) == 1
    assert len(await rows(sessions, "SELECT 1 FROM promotions WHERE to_deployment_id = 'bot-v1'")) == 1
    events = await rows(sessions, "SELECT type FROM outbox WHERE agent_name = 'bot'")
    assert Counter(row.type for row in events) == {
        "podium.agent.registered.v1": 1,
        "podium.deployment.created.v1": 1,
        "podium.deployment.ready.v1": 1,
        "podium.deployment.promoted.v1": 1,
    }


BAD_MESSAGES = {
    "not JSON": (b"{", "malformed"),
    "JSON, but no object": (b"[1, 2]", "malformed"),
    "empty": (b"", "malformed"),
    "not UTF-8": (b'{"name": "\xff\xfe"}', "malformed"),
    "no message id": (to_json({**a_body(), "message_id": None}), "malformed"),
    "no time": (to_json({**a_body(), "registered_at": None}), "malformed"),
    "a time without zone": (to_json({**a_body(), "registered_at": "2026-01-01T00:00:00"}), "malformed"),
    "a time beyond the calendar": (to_json({**a_body(), "registered_at": "0001-01-01T00:00:00+14:00"}), "malformed"),
    "a bad name": (to_json({**a_body(), "name": "No Such Name"}), "malformed"),
    "a bad address": (to_json(a_body(acp_url="ftp://10.0.0.7")), "malformed"),
    "a password in the address": (to_json(a_body(acp_url="http://user:secret@10.0.0.7")), "malformed"),
    "a bad deployment id": (to_json(a_body(deployment_id="../etc")), "malformed"),
    "NUL in the metadata": (to_json(a_body(registration_metadata={"commit": "a\x00b"})), "malformed"),
    "NUL in a metadata key": (to_json(a_body(registration_metadata={"a\x00b": 1})), "malformed"),
    "a lone surrogate": (
        to_json(a_body()).replace(b"support-bot", b'x", "description": "\\ud800'),
        "malformed",
    ),
    "an infinite number": (
        to_json(a_body(registration_metadata={"n": 0})).replace(b'"n":0', b'"n":1e400'),
        "malformed",
    ),
    "nested too deep": (
        to_json(a_body(registration_metadata={"n": 0})).replace(b'"n":0', b'"n":' + b"[" * 40 + b"]" * 40),
        "malformed",
    ),
    "more than 64 KiB": (to_json(a_body(description="x" * 64 * 1024)), "message-too-large"),
    "5 MiB": (to_json(a_body(description="x" * (5 * 1024 * 1024))), "message-too-large"),
}


@pytest.mark.usefixtures("registrar")
async def test_bad_messages_are_parked_with_their_reason_and_the_worker_lives(
    broker: AbstractConnection, sessions: Sessions, settings: Settings
) -> None:
    """Every kind of bad message is parked whole, with a reason; later good messages are applied."""
    headers: Any = {
        "text": "a\x00b",
        "bytes": bytearray(b"\xff\x00"),
        "number": 1.5,
        "nested": {"list": [1, bytearray(b"\x00")]},
    }
    async with working(run_drainer, settings):
        for body, _ in BAD_MESSAGES.values():
            await publish(broker, body, key="agent.support-bot", headers=headers)
        await publish(broker, a_body("good", deployment_id="good-v1"))
        await eventually_rows(sessions, "SELECT 1 FROM agents WHERE name = 'good'")
        parked = await eventually_rows(sessions, "SELECT reason, error, body FROM parked", len(BAD_MESSAGES))
    assert {bytes(row.body): row.reason for row in parked} == dict(BAD_MESSAGES.values())
    assert all(row.error for row in parked)
    assert not await rows(sessions, "SELECT 1 FROM agents WHERE name = 'support-bot'")
    await _nothing_left(broker)


@pytest.mark.usefixtures("registrar")
@pytest.mark.parametrize("more", [{}, {b"\xff": b"V"}], ids=["readable headers", "unreadable headers"])
async def test_a_header_of_the_broker_s_own_holds_up_no_dead_letters(
    broker: AbstractConnection, sessions: Sessions, settings: Settings, more: dict[bytes, bytes]
) -> None:
    """Such a message is parked with the beginning of its body, and the dead letters behind it are parked whole."""
    a_list = b"A" + long_text(b"s\x00\x01" + b"F" + table({b"k": b"t\x01"}))
    large, next_one = (to_json(a_body(deployment_id=each, description="x" * 64 * 1024)) for each in ("v1", "v2"))
    async with working(run_drainer, settings):
        async with broker.channel() as channel:
            await (await channel.get_underlay_channel()).basic_publish(
                large,
                exchange=topology.REGISTRATIONS_EXCHANGE,
                routing_key="agent.support-bot",
                properties=RawProperties({"headers": table({b"x-death": a_list, **more})}),
            )
        await publish(broker, next_one, key="agent.support-bot")
        parked = await eventually_rows(sessions, "SELECT reason, body FROM parked", 2)
    beginning = large[: REGISTRATION_MAX_BYTES + 1]
    assert {bytes(row.body): row.reason for row in parked} == dict.fromkeys((beginning, next_one), "message-too-large")
    await _nothing_left(broker)


@pytest.mark.usefixtures("registrar")
@pytest.mark.parametrize("key", ["agent.other", "agent.Bad_Name"])
async def test_a_key_that_names_another_agent_is_parked(
    broker: AbstractConnection, sessions: Sessions, key: str
) -> None:
    """A pod that may publish only under its own key cannot register a deployment of another agent."""
    await publish(broker, a_body("victim", deployment_id="victim-v1"), key=key)
    (row,) = await eventually_rows(sessions, "SELECT reason, routing_key FROM parked")
    assert (row.reason, row.routing_key) == ("key-mismatch", key)
    assert not await rows(sessions, "SELECT 1 FROM agents")


@pytest.mark.usefixtures("registrar")
async def test_unknown_fields_are_ignored(broker: AbstractConnection, sessions: Sessions) -> None:
    """A newer pod may send fields that this version does not know; unknown metadata is stored."""
    await publish(broker, a_body("bot", deployment_id="v1", novelty=1, registration_metadata={"commit": "abc"}))
    (row,) = await eventually_rows(sessions, "SELECT registration_metadata AS facts FROM deployments WHERE id = 'v1'")
    assert row.facts == {"commit": "abc", "deployment_id": "v1"}


async def test_a_message_is_acknowledged_only_after_its_commit(
    broker: AbstractConnection, sessions: Sessions, settings: Settings
) -> None:
    """A registrar that ends while its transaction waits loses nothing: the next registrar gets the message."""
    async with working(run_registrar, settings):
        await publish(broker, a_body("bot", deployment_id="v1"))
        await eventually_rows(sessions, "SELECT 1 FROM deployments WHERE id = 'v1'")

    stop = asyncio.Event()
    async with sessions() as holder, holder.begin():
        await holder.execute(text("SELECT 1 FROM agents WHERE name = 'bot' FOR UPDATE"))
        registrar = asyncio.ensure_future(run_registrar(settings, stop))
        await publish(broker, a_body("bot", deployment_id="v2"))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await eventually_rows(sessions, waiting)
        registrar.cancel()
        with pytest.raises(asyncio.CancelledError):
            await registrar
    assert not await rows(sessions, "SELECT 1 FROM deployments WHERE id = 'v2'")

    async with working(run_registrar, settings):
        await eventually_rows(sessions, "SELECT 1 FROM deployments WHERE id = 'v2'")
    await _nothing_left(broker)


async def test_what_the_database_refuses_is_parked_alone(
    broker: AbstractConnection, sessions: Sessions, settings: Settings
) -> None:
    """One message that the database refuses does not prevent the other messages of its batch from being applied."""
    async with sessions() as session, session.begin():
        await session.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "IF NEW.id = 'poison' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$"
            )
        )
        await session.execute(
            text("CREATE TRIGGER refuse BEFORE INSERT ON deployments FOR EACH ROW EXECUTE FUNCTION refuse()")
        )
    for number in range(20):
        await publish(broker, a_body(f"bot-{number}", deployment_id=f"v-{number}" if number != 7 else "poison"))
    async with working(run_registrar, settings):
        await eventually_rows(sessions, "SELECT 1 FROM deployments", 19)
        (row,) = await eventually_rows(sessions, "SELECT reason, attempts FROM parked")
    assert (row.reason, row.attempts) == ("unprocessable", 1)
    await _nothing_left(broker)


@pytest.mark.usefixtures("registrar")
async def test_direct_replies_contain_the_outcome(broker: AbstractConnection) -> None:
    """A pod that uses RabbitMQ's direct reply-to gets the outcome of its message."""
    channel = await broker.channel()
    replies: list[Any] = []

    async def keep(message: Any) -> None:
        replies.append((message.correlation_id, from_json(message.body)))

    reply_queue = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
    await reply_queue.consume(keep, no_ack=True)
    exchange = await channel.get_exchange(topology.REGISTRATIONS_EXCHANGE)
    for name, deployment_id in (("bot", "v1"), ("thief", "v1")):
        body = to_json(a_body(name, deployment_id=deployment_id))
        message = Message(body, reply_to="amq.rabbitmq.reply-to", correlation_id=name)
        await exchange.publish(message, topology.registration_key(name))

    async def answered() -> bool:
        return len(replies) == 2

    await eventually(answered, "two replies")
    answers = dict(replies)
    assert (answers["bot"]["outcome"], answers["bot"]["generation"]) == ("Registered", 1)
    assert (answers["thief"]["outcome"], answers["thief"]["reason"]) == ("Rejected", "deployment-of-another-agent")
    assert answers["thief"]["agent_id"] is None


@pytest.mark.usefixtures("registrar")
async def test_other_reply_addresses_get_nothing(broker: AbstractConnection, sessions: Sessions) -> None:
    """A pod cannot make Podium publish to the queue of another program."""
    channel = await broker.channel()
    queue = await channel.declare_queue(f"foreign-{uuid4().hex}", exclusive=True)
    await publish(broker, a_body("bot", deployment_id="v1"), reply_to=queue.name)
    await publish(broker, a_body("last", deployment_id="v2"))
    await eventually_rows(sessions, "SELECT 1 FROM agents WHERE name = 'last'")
    assert await queue.get(fail=False) is None


@pytest.mark.usefixtures("registrar")
async def test_the_trace_of_a_pod_reaches_its_events(broker: AbstractConnection, sessions: Sessions) -> None:
    """A valid W3C traceparent is copied to every event that the message causes; an invalid one is dropped."""
    await publish(broker, a_body("bot", deployment_id="v1"), headers={"traceparent": TRACEPARENT})
    await publish(broker, a_body("odd", deployment_id="v2"), headers={"traceparent": "' OR 1=1"})
    await eventually_rows(sessions, "SELECT 1 FROM outbox WHERE agent_name = 'odd'")
    events = await rows(sessions, "SELECT agent_name, traceparent FROM outbox")
    assert {(row.agent_name, row.traceparent) for row in events} == {("bot", TRACEPARENT), ("odd", None)}


async def _nothing_left(broker: AbstractConnection) -> None:
    """Wait until every message is acknowledged, and check that none was dead-lettered."""

    async def drained() -> bool:
        return await ready_messages(broker, topology.REGISTRATIONS_QUEUE) == 0

    await eventually(drained, "an empty queue")
    assert await ready_messages(broker, topology.PARKED_QUEUE) == 0
