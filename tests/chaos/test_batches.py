"""Batches with a message that the database refuses, and batches of a worker that is stopped."""

import os
import signal
from contextlib import AsyncExitStack

from sqlalchemy import text

from contracts import topology
from tests.chaos.gate import build_gate, closed_gate
from tests.chaos.ground import Field, ended_within
from tests.chaos.size import SIZE
from tests.chaos.traffic import pods_of, until_quiet, waiting_in
from tests.support.factories import incoming
from tests.support.waiting import eventually, rows

BATCH = 200
DRAIN_SECONDS = 1
REFUSE = (
    """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.id = 'poison' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$
""",
    "CREATE TRIGGER refuse BEFORE INSERT ON deployments FOR EACH ROW EXECUTE FUNCTION refuse()",
)


async def test_one_poisoned_message_of_200_is_parked_alone_in_the_same_pass(field: Field) -> None:
    """199 are applied and one is parked with its reason; each is delivered only once."""
    async with field.sessions() as session, session.begin():
        for statement in REFUSE:
            await session.execute(text(statement))
    ids = [f"v-{number}" if number != BATCH // 3 else "poison" for number in range(BATCH)]
    async with pods_of(field) as pods:
        await pods.publish([incoming(f"bot-{number}", deployment_id=each) for number, each in enumerate(ids)])
    async with field.worker("registrar", PODIUM_BATCH_SIZE=str(BATCH), PODIUM_BATCH_LINGER="1"):
        await field.until_logged("registrar.batch")
        await until_quiet(field, BATCH, published=False)
    (batch,) = field.logged("registrar.batch")
    assert (batch["messages"], batch["outcomes"]) == (BATCH, {"Registered": BATCH - 1, "Rejected": 1})
    assert len(await rows(field.sessions, "SELECT 1 FROM deployments")) == BATCH - 1
    (parked,) = await rows(field.sessions, "SELECT reason, agent_name, attempts FROM parked")
    assert (parked.reason, parked.agent_name, parked.attempts) == ("unprocessable", f"bot-{BATCH // 3}", 1)
    assert not field.logged("registrar.came_again")
    assert not field.logged("registrar.ack_lost")


async def test_rolling_restarts_park_no_innocents(field: Field) -> None:
    """Each restart requeues all messages of its worker; below the delivery limit, none is parked or lost."""
    assert SIZE.rolling_restarts < field.settings.delivery_limit == topology.DELIVERY_LIMIT
    await build_gate(field.sessions)
    messages = [incoming(f"bot-{number}", deployment_id=f"v-{number}") for number in range(BATCH)]
    async with pods_of(field) as pods, AsyncExitStack() as stack:
        await pods.publish(messages)
        for _ in range(SIZE.rolling_restarts):
            async with closed_gate(field.sessions) as gate:
                variables = {"PODIUM_DRAIN_TIMEOUT": str(DRAIN_SECONDS), "PODIUM_BATCH_SIZE": str(BATCH)}
                worker = await stack.enter_async_context(field.worker("registrar", **variables))
                await gate.reached()
                os.kill(worker.pid, signal.SIGTERM)
                await ended_within(worker, DRAIN_SECONDS + 5)
                await _requeued(field)
    assert len(field.logged("worker.cut_short")) == SIZE.rolling_restarts
    async with field.worker():
        await until_quiet(field, BATCH)
    assert not await rows(field.sessions, "SELECT 1 FROM parked")
    assert await waiting_in(field, topology.PARKED_QUEUE) == 0


async def test_a_graceful_stop_requeues_nothing(field: Field) -> None:
    """After SIGTERM, delivered messages are decided and acknowledged; none is delivered twice."""
    await build_gate(field.sessions)
    async with pods_of(field) as pods, field.worker("registrar", PODIUM_BATCH_SIZE="50") as worker:
        await field.until_logged("registrar.started")
        async with closed_gate(field.sessions) as gate:
            publishing = [incoming(f"bot-{number}", deployment_id=f"v-{number}") for number in range(BATCH // 2)]
            await pods.publish(publishing)
            await gate.reached()
            os.kill(worker.pid, signal.SIGTERM)
            await field.until_logged("worker.stopping")
        assert await ended_within(worker, 10) == 0
    decided = sum(line["messages"] for line in field.logged("registrar.batch"))
    assert decided == len(await rows(field.sessions, "SELECT 1 FROM registrations")) == BATCH // 2
    assert await waiting_in(field, topology.REGISTRATIONS_QUEUE) == 0


async def _requeued(field: Field) -> None:
    """Wait until the broker has requeued all messages of the ended worker."""

    async def all_ready() -> bool:
        return await waiting_in(field, topology.REGISTRATIONS_QUEUE) == BATCH

    await eventually(all_ready, "every message back in the queue")
