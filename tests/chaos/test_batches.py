"""Batches with a message that the database refuses, and batches of a worker that is stopped."""

import os
import signal
from contextlib import AsyncExitStack

from sqlalchemy import text

from contracts import topology
from tests.chaos.gate import build_gate, closed_gate
from tests.chaos.size import SIZE
from tests.chaos.system import System, ended_within
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


async def test_one_poisoned_message_of_200_is_parked_alone_in_the_same_pass(system: System) -> None:
    """199 are applied and one is parked with its reason; each is delivered only once."""
    async with system.sessions() as session, session.begin():
        for statement in REFUSE:
            await session.execute(text(statement))
    ids = [f"v-{number}" if number != BATCH // 3 else "poison" for number in range(BATCH)]
    async with pods_of(system) as pods:
        await pods.publish([incoming(f"bot-{number}", deployment_id=each) for number, each in enumerate(ids)])
    async with system.worker("registrar", PODIUM_BATCH_SIZE=str(BATCH), PODIUM_BATCH_LINGER="1"):
        await system.until_logged("registrar.batch")
        await until_quiet(system, BATCH, published=False)
    (batch,) = system.logged("registrar.batch")
    assert (batch["messages"], batch["outcomes"]) == (BATCH, {"Registered": BATCH - 1, "Rejected": 1})
    assert len(await rows(system.sessions, "SELECT 1 FROM deployments")) == BATCH - 1
    (parked,) = await rows(system.sessions, "SELECT reason, agent_name, attempts FROM parked")
    assert (parked.reason, parked.agent_name, parked.attempts) == ("unprocessable", f"bot-{BATCH // 3}", 1)
    assert not system.logged("registrar.came_again")
    assert not system.logged("registrar.ack_lost")


async def test_rolling_restarts_park_no_innocents(system: System) -> None:
    """Each restart requeues all messages of its worker; below the delivery limit, none is parked or lost."""
    assert SIZE.rolling_restarts < system.settings.delivery_limit == topology.DELIVERY_LIMIT
    await build_gate(system.sessions)
    messages = [incoming(f"bot-{number}", deployment_id=f"v-{number}") for number in range(BATCH)]
    async with pods_of(system) as pods, AsyncExitStack() as stack:
        await pods.publish(messages)
        for _ in range(SIZE.rolling_restarts):
            async with closed_gate(system.sessions) as gate:
                variables = {"PODIUM_DRAIN_TIMEOUT": str(DRAIN_SECONDS), "PODIUM_BATCH_SIZE": str(BATCH)}
                worker = await stack.enter_async_context(system.worker("registrar", **variables))
                await gate.reached()
                os.kill(worker.pid, signal.SIGTERM)
                await ended_within(worker, DRAIN_SECONDS + 5)
                await _requeued(system)
    assert len(system.logged("worker.cut_short")) == SIZE.rolling_restarts
    async with system.worker():
        await until_quiet(system, BATCH)
    assert not await rows(system.sessions, "SELECT 1 FROM parked")
    assert await waiting_in(system, topology.PARKED_QUEUE) == 0


async def test_a_graceful_stop_requeues_nothing(system: System) -> None:
    """After SIGTERM, delivered messages are decided and acknowledged; none is delivered twice."""
    await build_gate(system.sessions)
    async with pods_of(system) as pods, system.worker("registrar", PODIUM_BATCH_SIZE="50") as worker:
        await system.until_logged("registrar.started")
        async with closed_gate(system.sessions) as gate:
            publishing = [incoming(f"bot-{number}", deployment_id=f"v-{number}") for number in range(BATCH // 2)]
            await pods.publish(publishing)
            await gate.reached()
            os.kill(worker.pid, signal.SIGTERM)
            await system.until_logged("worker.stopping")
        assert await ended_within(worker, 10) == 0
    decided = sum(line["messages"] for line in system.logged("registrar.batch"))
    assert decided == len(await rows(system.sessions, "SELECT 1 FROM registrations")) == BATCH // 2
    assert await waiting_in(system, topology.REGISTRATIONS_QUEUE) == 0


async def _requeued(system: System) -> None:
    """Wait until the broker has requeued all messages of the ended worker."""

    async def all_ready() -> bool:
        return await waiting_in(system, topology.REGISTRATIONS_QUEUE) == BATCH

    await eventually(all_ready, "every message back in the queue")
