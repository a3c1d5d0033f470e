"""A worker under thousands of mutated messages: none is lost, none comes again for ever, and its memory stays flat."""

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from uuid import UUID

import aiormq
from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPError

from contracts import topology
from contracts.messages import REGISTRATION_MAX_BYTES
from tests.chaos.size import SIZE
from tests.chaos.system import System
from tests.chaos.traffic import waiting_in
from tests.support.amqp_wire import RawKey, RawProperties
from tests.support.forked_programs import NEW_PROCESS
from tests.support.invariants import assert_invariants
from tests.support.mutants import Mutant, Mutants
from tests.support.processes import megabytes
from tests.support.shuffle import FRESH_SEED
from tests.support.waiting import eventually, rows
from workers.amqp.decoding import tolerate_invalid_properties

AT_ONCE = 100
# Of the messages, these come first: caches, pools and the allocator have their final size after them.
WARM_UP = 0.25
MAY_GROW_MB = 25


class Publisher:
    """Publishes mutants, on a new connection whenever the broker has closed the one before."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: aiormq.abc.AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self.refused = 0

    async def publish(self, mutants: Sequence[Mutant]) -> list[Mutant]:
        """Publish these; returns those that the broker has accepted."""
        accepted = []
        for bold in [mutant for mutant in mutants if mutant.is_bold]:
            try:
                await self._publish(bold)
            except (AMQPError, OSError, RuntimeError):
                self.refused += 1
                await self.close()
            else:
                accepted.append(bold)
        others = [mutant for mutant in mutants if not mutant.is_bold]
        await self._open()
        await asyncio.gather(*map(self._publish, others))
        return accepted + others

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(AMQPError, OSError, RuntimeError, asyncio.CancelledError):
                await connection.close()

    async def _publish(self, mutant: Mutant) -> None:
        channel = await self._open()
        async with asyncio.timeout(10):
            await channel.basic_publish(
                mutant.body,
                exchange=topology.REGISTRATIONS_EXCHANGE,
                routing_key=RawKey.of(mutant.key),
                properties=RawProperties(mutant.properties),
            )

    async def _open(self) -> AbstractChannel:
        if self._channel is None:
            self._connection = await aiormq.connect(self._url)
            self._channel = await self._connection.channel()
        return self._channel


@asynccontextmanager
async def publisher(system: System) -> AsyncIterator[Publisher]:
    """A publisher whose connection is closed afterwards."""
    publisher = Publisher(system.settings.amqp_url.get_secret_value())
    try:
        yield publisher
    finally:
        await publisher.close()


def outcomes(system: System) -> Counter[str]:
    """What the worker says that it did with messages, by outcome."""
    counted = Counter(parked_by_drainer=len(system.logged("drainer.parked")))
    for line in system.logged("registrar.batch"):
        counted.update(line["outcomes"])
    return counted


async def until_settled(system: System, count: int) -> None:
    """Wait until this many messages have an outcome, and no more."""

    async def settled() -> bool:
        if any([await waiting_in(system, queue) for queue in (topology.REGISTRATIONS_QUEUE, topology.PARKED_QUEUE)]):
            return False
        return outcomes(system).total() >= count

    try:
        await eventually(settled, f"{count} messages have an outcome", seconds=SIZE.patience)
    finally:
        seen = outcomes(system)
        assert seen.total() == count, seen


def message_id(body: bytes) -> UUID | None:
    """The id in a body, if it can be read."""
    try:
        return UUID(json.loads(body)["message_id"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


async def lost(system: System, sent: Sequence[Mutant]) -> list[Mutant]:
    """The messages that are neither in the inbox nor parked."""
    known = {row.message_id for row in await rows(system.sessions, "SELECT message_id FROM registrations")}
    parked = await rows(system.sessions, "SELECT message_id, sha256(body) AS digest FROM parked")
    known |= {row.message_id for row in parked}
    digests = {bytes(row.digest) for row in parked}
    return [
        mutant
        for mutant in sent
        if message_id(mutant.body) not in known - {None}
        # Of a large message whose publisher has set `x-death`, only the beginning is parked.
        and not {sha256(body).digest() for body in (mutant.body, mutant.body[: REGISTRATION_MAX_BYTES + 1])} & digests
    ]


async def test_mutated_messages_are_each_applied_or_parked(system: System) -> None:
    """G90: each one the broker accepts has one outcome and can be found; the worker never stops and does not grow."""
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # it logs each connection that the broker closes
    tolerate_invalid_properties()  # the publisher's own client reads what the broker returns
    mutants = Mutants(random.Random(FRESH_SEED))  # noqa: S311 - reproducible mutations, no secret
    sent: list[Mutant] = []
    try:
        async with system.worker("registrar drainer", **NEW_PROCESS) as worker, publisher(system) as broker:
            memory = []
            for count in (round(SIZE.mutants * WARM_UP), SIZE.mutants):
                while len(sent) < count:
                    sent += await broker.publish([mutants.next() for _ in range(min(AT_ONCE, count - len(sent)))])
                await until_settled(system, len(sent))
                memory.append(megabytes(worker.pid, "VmRSS"))
            assert worker.code is None
        for queue in (topology.REGISTRATIONS_QUEUE, topology.PARKED_QUEUE):
            assert await waiting_in(system, queue) == 0, f"{queue} got messages back"
        assert await lost(system, sent) == []
        for action in ("registrar.disconnected", "drainer.disconnected", "drainer.refused", "registrar.ack_lost"):
            assert system.logged(action) == []
        assert len(system.logged("registrar.started")) == 1
        async with system.sessions() as session:
            await assert_invariants(session)
        assert memory[1] < memory[0] + MAY_GROW_MB
    except AssertionError as difference:
        difference.add_note(f"Run it again with FRESH_SEED={FRESH_SEED}.")
        raise
    reasons = await rows(system.sessions, "SELECT reason, sum(attempts)::int AS count FROM parked GROUP BY reason")
    print(  # noqa: T201 - the figures of the run
        f"{len(sent)} messages, {broker.refused} more refused by the broker; {dict(outcomes(system))}; "
        f"parked: {dict(map(tuple, reasons))}; memory {memory[0]:.0f} MB, then {memory[1]:.0f} MB"
    )
