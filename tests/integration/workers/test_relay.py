import asyncio
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractConnection
from sqlalchemy import text

from contracts import topology
from services.domain.caller import Caller
from services.events.outbox import RELAY_SESSION
from services.promotion.promote import promote
from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.integration.workers.conftest import working
from tests.support.broker import Consumer, a_consumer
from tests.support.factories import incoming
from tests.support.waiting import eventually, eventually_rows, rows
from workers import relay as relay_module
from workers.runner import run_relay

TERMINATE_RELAYS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = 'podium-relay'"
)


async def register(sessions: Sessions, name: str, *deployment_ids: str) -> None:
    """Register deployments of one agent, one transaction each."""
    for deployment_id in deployment_ids:
        message = incoming(name, deployment_id=deployment_id)
        await in_transaction(sessions, lambda session, message=message: register_batch(session, [message]))  # type: ignore[misc]


async def promote_back_and_forth(sessions: Sessions, name: str, deployment_ids: list[str], times: int) -> None:
    """Promote these deployments in turn."""
    (agent,) = await rows(sessions, "SELECT id FROM agents WHERE name = :name", name=name)
    for number in range(times):
        target = deployment_ids[number % len(deployment_ids)]
        await in_transaction(
            sessions,
            lambda session, target=target: promote(session, agent.id, target, Caller(actor="test")),  # type: ignore[misc]
        )


def assert_gap_free(consumer: Consumer) -> None:
    """Check that the sequences of each agent, without duplicates, are 1, 2, 3, ... in the order of arrival."""
    by_source: dict[str, list[int]] = {}
    for event in consumer.once():
        by_source.setdefault(event.source, []).append(int(event.sequence))
    assert by_source
    for source, sequences in by_source.items():
        assert sequences == list(range(1, len(sequences) + 1)), source


async def everything_published(sessions: Sessions) -> None:
    """Wait until every event is published."""

    async def none_left() -> bool:
        return not await rows(sessions, "SELECT 1 FROM outbox WHERE published_at IS NULL")

    await eventually(none_left, "everything published")


@pytest.mark.usefixtures("relay")
async def test_events_arrive_in_sequence_order(broker: AbstractConnection, sessions: Sessions) -> None:
    """A consumer gets each agent's events in order and without gaps, and one `promoted` event per generation."""
    consumer = await a_consumer(broker)
    await asyncio.gather(*(register(sessions, f"bot-{n}", f"a-{n}", f"b-{n}") for n in range(10)))
    await asyncio.gather(*(promote_back_and_forth(sessions, f"bot-{n}", [f"b-{n}", f"a-{n}"], 10) for n in range(10)))
    promoted = await consumer.until(10 * 11, type="deployment.promoted")
    assert_gap_free(consumer)
    generations: dict[str, list[int]] = {}
    for event in promoted:
        generations.setdefault(event.source, []).append(event.generation)
    assert list(generations.values()) == [list(range(1, 12))] * 10


@pytest.mark.usefixtures("relay")
async def test_an_event_is_a_cloudevent_under_its_routing_key(broker: AbstractConnection, sessions: Sessions) -> None:
    """A consumer bound to one event type of one agent gets only these events, as CloudEvents 1.0 in structured JSON."""
    consumer = await a_consumer(broker, "deployment.promoted.support-bot")
    await register(sessions, "other-bot", "other-v1")
    await register(sessions, "support-bot", "support-v1")
    await everything_published(sessions)
    (event,) = await consumer.until(1)
    (agent,) = await rows(sessions, "SELECT id FROM agents WHERE name = 'support-bot'")
    (stored,) = await rows(
        sessions,
        "SELECT event_id FROM outbox WHERE agent_name = 'support-bot' AND type = 'podium.deployment.promoted.v1'",
    )
    assert event.id == stored.event_id
    assert event.source == f"/podium/agents/{agent.id}"
    assert event.subject == "support-v1"
    assert event.sequence == "00000000000000000004"
    assert (event.generation, event.agentname) == (1, "support-bot")
    assert event.data["cause"] == "first"


@pytest.mark.usefixtures("relay", "broker")
async def test_an_event_without_a_bound_queue_is_published_too(sessions: Sessions) -> None:
    """Without any consumer, all events are published."""
    await register(sessions, "bot", "v1")
    await everything_published(sessions)


@pytest.mark.usefixtures("relay")
async def test_nothing_uncommitted_is_published(broker: AbstractConnection, sessions: Sessions) -> None:
    """An event of a transaction that is rolled back is never published."""
    consumer = await a_consumer(broker)
    async with sessions() as session:
        await register_batch(session, [incoming("ghost", deployment_id="ghost-v1")])
        await register(sessions, "bot", "v1")
        await consumer.until(4)
        await session.rollback()
    await register(sessions, "bot", "v2")
    await consumer.until(6)
    assert {event.agentname for event in consumer.events} == {"bot"}


async def test_a_second_relay_takes_over_and_loses_nothing(
    broker: AbstractConnection, sessions: Sessions, settings: Settings
) -> None:
    """Of two relays one publishes; when its session is terminated, publishing continues without gaps."""
    consumer = await a_consumer(broker)
    async with working(run_relay, settings), working(run_relay, settings):
        await eventually_rows(sessions, RELAY_SESSION)
        for number in range(3):
            await register(sessions, "bot", *(f"v-{number}-{n}" for n in range(10)))
            async with sessions() as session, session.begin():
                await session.execute(TERMINATE_RELAYS)
        await everything_published(sessions)
        assert len(await eventually_rows(sessions, RELAY_SESSION)) == 1
    assert_gap_free(consumer)


async def test_without_a_fresh_proof_of_the_lock_nothing_is_published(
    broker: AbstractConnection, sessions: Sessions, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay whose proof of the lock has expired publishes nothing."""
    monkeypatch.setattr(relay_module, "PROOF_VALID_SECONDS", -1.0)
    consumer = await a_consumer(broker)
    await register(sessions, "bot", "v1")
    claims: set[object] = set()

    async def claimed_four_times() -> bool:
        query = "SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND query LIKE :claim"
        claims.update(
            row.query_start for row in await rows(sessions, query, claim="%FROM outbox%published_at IS NULL%")
        )
        return len(claims) >= 4

    async with working(run_relay, settings):
        await eventually(claimed_four_times, "four rounds of the relay")
    assert not consumer.events
    assert not await rows(sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL")


@pytest.mark.usefixtures("relay", "broker")
async def test_an_event_that_cannot_be_written_holds_up_its_agent_alone(sessions: Sessions) -> None:
    """A damaged event delays only later events of its own agent; it is logged and never marked as published."""
    async with sessions.begin() as session:
        await register_batch(session, [incoming("damaged", deployment_id="damaged-v1")])
        await session.execute(text("UPDATE outbox SET payload = '[]' WHERE sequence = 2"))
    await register(sessions, "bot", "v1")
    published = "SELECT 1 FROM outbox WHERE published_at IS NOT NULL"
    await eventually_rows(sessions, f"{published} AND agent_name = 'bot'", 4)
    await eventually_rows(sessions, f"{published} AND agent_name = 'damaged'")
    assert len(await rows(sessions, f"{published} AND agent_name = 'damaged'")) == 1


@pytest.mark.usefixtures("relay")
async def test_an_event_of_a_type_of_a_newer_version_is_published(
    broker: AbstractConnection, sessions: Sessions
) -> None:
    """G55: during an upgrade, an older relay publishes it unchanged, in its place among the agent's events."""
    consumer = await a_consumer(broker, "deployment.weighed.bot")
    everything = await a_consumer(broker)
    async with sessions.begin() as session:
        await register_batch(session, [incoming("bot", deployment_id="v1")])
        newer = "UPDATE outbox SET type = 'podium.deployment.weighed.v2', payload = '{\"grams\": 7}' WHERE sequence = 2"
        await session.execute(text(newer))
    await everything.until(4)
    assert_gap_free(everything)
    (event,) = await consumer.until(1)
    assert (event.type, event.data) == ("podium.deployment.weighed.v2", {"grams": 7})


@pytest.mark.usefixtures("relay")
async def test_an_agent_whose_event_is_refused_waits_in_order(broker: AbstractConnection, sessions: Sessions) -> None:
    """While a full queue refuses an event of one agent, its later events wait, and events of other agents continue."""
    channel = await broker.channel()
    full = await channel.declare_queue(
        f"full-{uuid4().hex}", exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    await full.bind(topology.EVENTS_EXCHANGE, "*.*.stuck")
    await register(sessions, "stuck", "stuck-v1")
    await eventually_rows(sessions, "SELECT 1 FROM outbox WHERE agent_name = 'stuck' AND published_at IS NOT NULL")
    await register(sessions, "free", "free-v1")
    free = "SELECT 1 FROM outbox WHERE agent_name = 'free' AND published_at IS NOT NULL"
    await eventually_rows(sessions, free, 4)
    published = await rows(
        sessions, "SELECT sequence FROM outbox WHERE agent_name = 'stuck' AND published_at IS NOT NULL ORDER BY id"
    )
    assert len(published) < 4

    received: list[bytes] = []

    async def all_received() -> bool:
        message = await full.get(fail=False, no_ack=True)
        if message is not None:
            received.append(message.body)
        return len(set(received)) >= 4

    await eventually(all_received, "all four events of the agent")
    await everything_published(sessions)
