import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractConnection

from contracts.events import CloudEvent, event_sequence, event_source
from contracts.topology import EVENTS_EXCHANGE, event_key
from examples.idempotent_consumer import ARGUMENTS, QUEUE, SCHEMA, apply
from podium.servers.process import GuardedProcess
from services.domain.caller import Caller
from services.promotion.promote import promote
from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.support.broker import Consumer, a_consumer
from tests.support.factories import incoming
from tests.support.processes import environment, program
from tests.support.waiting import eventually, rows

PROMOTED = "podium.deployment.promoted.v1"


def an_event(sequence: int, **changes: object) -> dict[str, object]:
    """A promotion as the example reads it."""
    event: dict[str, object] = {
        "source": event_source("an-agent-id"),
        "sequence": event_sequence(sequence),
        "type": PROMOTED,
        "agentname": "support-bot",
        "generation": sequence,
        "subject": f"v{sequence}",
        "data": {"cause": "manual"},
    }
    return event | changes


@pytest.fixture
def db() -> sqlite3.Connection:
    """A database as the example makes it."""
    db = sqlite3.connect(":memory:")
    db.executescript(SCHEMA)
    return db


@pytest.mark.parametrize("again", [3, 2, 1], ids=["the last", "an older one", "the first"])
def test_an_event_that_comes_again_has_no_effect(db: sqlite3.Connection, again: int) -> None:
    """What is not greater than the last sequence of its source is dropped."""
    assert [apply(db, an_event(sequence)) for sequence in (1, 2, 3)] == [True] * 3
    assert not apply(db, an_event(again))
    assert db.execute("SELECT generation FROM cutovers").fetchall() == [(1,), (2,), (3,)]


def test_each_agent_has_a_sequence_of_its_own(db: sqlite3.Connection) -> None:
    """The first event of another source is new, whatever was seen of others."""
    assert apply(db, an_event(9))
    assert apply(db, an_event(1, source=event_source("another-agent-id")))


def test_sequences_are_compared_as_numbers(db: sqlite3.Connection) -> None:
    """The tenth event comes after the ninth."""
    assert [apply(db, an_event(sequence)) for sequence in (9, 10, 99, 100)] == [True] * 4


def test_an_event_whose_effect_fails_counts_as_not_seen(db: sqlite3.Connection) -> None:
    """Position and effect are one transaction: the event is taken when it comes again."""
    with pytest.raises(KeyError):
        apply(db, an_event(1, data={}))
    assert apply(db, an_event(1))


@asynccontextmanager
async def consuming(settings: Settings, folder: Path) -> AsyncIterator[GuardedProcess]:
    """The example as people start it, with its database in the folder."""
    env = environment(settings, CONSUMER_DB=str(folder / "db.sqlite"))
    async with program("examples.idempotent_consumer", env, folder / "consumer.log") as process:
        yield process


def generations(folder: Path) -> list[int]:
    """The generations whose promotion the example has written down, in its order."""
    with closing(sqlite3.connect(folder / "db.sqlite")) as db:
        return [generation for (generation,) in db.execute("SELECT generation FROM cutovers ORDER BY rowid")]


async def deliver_again(broker: AbstractConnection, events: list[CloudEvent]) -> None:
    """Events as the relay sends them, a second time."""
    channel = await broker.channel()
    async with channel:
        exchange = await channel.get_exchange(EVENTS_EXCHANGE)
        for event in events:
            body = event.model_dump_json(exclude_none=True).encode()
            await exchange.publish(Message(body), event_key(event.type, event.agentname), mandatory=True)


async def promote_in_turn(sessions: Sessions, deployment_ids: list[str]) -> None:
    """Promote these deployments one after another."""
    ((agent_id,),) = await rows(sessions, "SELECT id FROM agents")
    for each in deployment_ids:
        await in_transaction(
            sessions,
            lambda session, each=each: promote(session, agent_id, each, Caller(actor="test")),  # type: ignore[misc]
        )


async def sent(consumer: Consumer, generation: int) -> list[CloudEvent]:
    """Every event up to the promotion that began this generation."""
    await consumer.until(generation, type=PROMOTED)
    return consumer.events


@pytest.mark.usefixtures("relay")
async def test_repeated_deliveries_and_a_kill_leave_each_effect_once(
    broker: AbstractConnection, sessions: Sessions, settings: Settings, tmp_path: Path
) -> None:
    """Every event is delivered three times, the process is killed in between, and each promotion stands once."""
    channel = await broker.channel()
    await channel.queue_delete(QUEUE)
    queue = await channel.declare_queue(QUEUE, durable=True, arguments=ARGUMENTS)
    await queue.bind(EVENTS_EXCHANGE, "#")
    witness = await a_consumer(broker)
    batch = [incoming("bot", deployment_id=each) for each in ("v1", "v2")]
    await in_transaction(sessions, lambda session: register_batch(session, batch))
    await promote_in_turn(sessions, ["v2", "v1"] * 20)
    events = list(await sent(witness, 41))
    await deliver_again(broker, events)

    async with consuming(settings, tmp_path) as process:
        await eventually_written(tmp_path, 5)
        await process.kill()
    await deliver_again(broker, events)
    await promote_in_turn(sessions, ["v2"])
    async with consuming(settings, tmp_path):
        await eventually_written(tmp_path, 42)
    assert generations(tmp_path) == list(range(1, 43))


async def eventually_written(folder: Path, generation: int) -> None:
    """Wait until the example has got this far."""

    async def written() -> bool:
        try:
            return generation in generations(folder)
        except sqlite3.OperationalError:  # the example has not made its tables yet
            return False

    await eventually(written, f"generation {generation} at the consumer")
