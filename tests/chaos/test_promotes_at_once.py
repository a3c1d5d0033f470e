"""Promotes of two processes that share commits, beside all other changes of the same agents, at random.

CHAOS=long: 100,000 operations. With `-s` the test prints its counts.
"""

# ruff: noqa: D102 - the name of an operation describes it

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from api.batches import Batches, impatient
from services.agents.commands import AgentChange, change_agent, delete_deployment
from services.domain.caller import Caller
from services.errors import Busy, PodiumError, Unavailable
from services.promotion.promote import promote
from services.promotion.rollback import roll_back
from services.promotion.together import Promote, Promoted, CutoversTogether
from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.chaos.size import LIMIT_SECONDS, LONG, SIZE
from tests.support.factories import over_http
from tests.support.invariants import assert_invariants
from tests.support.shuffle import FRESH_SEED
from tests.support.waiting import rows

T = TypeVar("T")

OPERATIONS = 100_000 if SIZE is LONG else 1_200
AGENTS = 100 if SIZE is LONG else 12
CALLERS = 64
VERSIONS = 6

pytestmark = pytest.mark.timeout(LIMIT_SECONDS)


@dataclass
class Crowd:
    """The processes, the agents, and what the callers of promotes got, by their names."""

    sessions: Sessions
    processes: list[Batches[Promote, Promoted | PodiumError]]
    random: random.Random
    ids: dict[str, UUID] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    """The newest generation of each agent that a caller has seen."""
    promoted: dict[str, tuple[int, str, int | None]] = field(default_factory=dict)
    """By caller: the generation of the answer, the deployment, and the generation that it required."""
    counts: Counter[str] = field(default_factory=Counter)

    async def run(self, operations: int) -> None:
        """One caller after another, each with a name of its own."""
        kinds: list[tuple[Callable[[str, str, str], Awaitable[object]], int]] = [
            (self.promote_together, 60),
            (self.promote_locked, 10),
            (self.announce, 12),
            (self.roll_back, 6),
            (self.delete, 4),
            (self.pause, 4),
        ]
        works, weights = zip(*kinds, strict=True)
        for number in range(operations):
            [work] = self.random.choices(works, weights)
            name = self.random.choice(list(self.ids))
            version = f"{name}.v{self.random.randrange(VERSIONS)}"
            try:
                await work(name, version, f"{id(asyncio.current_task())}.{number}")
                self.counts[work.__name__] += 1
            except Unavailable:
                raise
            except PodiumError as refusal:
                self.counts[type(refusal).__name__] += 1

    async def promote_together(self, name: str, version: str, who: str) -> None:
        caller = self._caller(name, who)
        process = self.random.choice(self.processes)
        made = await process.make(self.ids[name], Promote(self.ids[name], version, caller))
        if isinstance(made, PodiumError):
            raise made
        if made is None:
            self.counts["taken under the lock"] += 1
            with process.alone(self.ids[name]):
                await self._locked(name, version, caller)
        else:
            self._got(name, version, caller, made.state.agent.generation)

    async def promote_locked(self, name: str, version: str, who: str) -> None:
        await self._locked(name, version, self._caller(name, who))

    async def announce(self, name: str, version: str, who: str) -> None:
        message = over_http(name, deployment_id=version, acp_url=f"http://{who}:8000")
        await self._in_transaction(lambda session: register_batch(session, [message]))

    async def roll_back(self, name: str, _: str, who: str) -> None:
        state = await self._in_transaction(lambda session: roll_back(session, self.ids[name], Caller(actor=who)))
        self.generations[name] = max(self.generations[name], state.agent.generation)

    async def delete(self, name: str, version: str, who: str) -> None:
        # Deleted for ever, so others must stay.
        version = f"{version}.{self.random.randrange(4)}"
        message = over_http(name, deployment_id=version)
        await self._in_transaction(lambda session: register_batch(session, [message]))
        await self.promote_together(name, version, f"{who}.first")
        await self._in_transaction(
            lambda session: delete_deployment(session, self.ids[name], version, Caller(actor=who), force=True)
        )

    async def pause(self, name: str, _: str, who: str) -> None:
        change = AgentChange(auto_promote_paused=self.random.random() < 0.5)
        await self._in_transaction(lambda session: change_agent(session, self.ids[name], change, Caller(actor=who)))

    async def _locked(self, name: str, version: str, caller: Caller) -> None:
        state = await self._in_transaction(lambda session: promote(session, self.ids[name], version, caller))
        self._got(name, version, caller, state.agent.generation)

    async def _in_transaction(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        return await in_transaction(self.sessions, work)

    def _caller(self, name: str, who: str) -> Caller:
        if_generation = self.generations[name] if self.random.random() < 0.4 else None
        return Caller(actor=who, if_generation=if_generation)

    def _got(self, name: str, version: str, caller: Caller, generation: int) -> None:
        self.generations[name] = max(self.generations[name], generation)
        self.promoted[caller.actor] = (generation, version, caller.if_generation)


@asynccontextmanager
async def a_process(
    settings: Settings, failures: list[Exception]
) -> AsyncIterator[Batches[Promote, Promoted | PodiumError]]:
    """The promotes of an API process; a batch that fails adds to `failures`, unless it gave way to a lock."""
    together = CutoversTogether(impatient(settings), application_name="together", on_events=lambda: None)

    async def make(promotes: Sequence[Promote]) -> list[Promoted | PodiumError | None]:
        try:
            return await together.make(promotes)
        except Busy:
            raise
        except Exception as error:
            failures.append(error)
            raise

    batches: Batches[Promote, Promoted | PodiumError] = Batches(settings, make)
    yield batches
    await batches.close()
    together.close()


async def test_promotes_of_all_kinds_at_once(settings: Settings, sessions: Sessions) -> None:
    """G89: no constraint is violated, the ledger and the events have no gaps, and each caller got what was written."""
    failures: list[Exception] = []
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(a_process(settings, failures)) for _ in range(2)]
        crowd = Crowd(sessions, processes, random.Random(FRESH_SEED))  # noqa: S311 - not a secret
        names = [f"bot-{number}" for number in range(AGENTS)]
        pods = [over_http(name, deployment_id=f"{name}.v{number}") for name in names for number in range(VERSIONS)]
        await in_transaction(sessions, lambda session: register_batch(session, pods))
        crowd.ids = {row.name: row.id for row in await rows(sessions, "SELECT name, id FROM agents")}
        crowd.generations = dict.fromkeys(crowd.ids, 1)
        await asyncio.gather(*(crowd.run(OPERATIONS // CALLERS) for _ in range(CALLERS)))
    print(f"seed {FRESH_SEED}: {dict(crowd.counts)}")  # noqa: T201 - figures
    assert not failures
    assert crowd.counts["promote_together"] > OPERATIONS / 10
    await in_transaction(sessions, assert_invariants)
    ledger = await rows(sessions, "SELECT agent_id, generation, actor, cause, to_deployment_id FROM promotions")
    by_generation = {(row.agent_id, row.generation): row for row in ledger}
    changed = set()
    for row in ledger:
        if row.cause == "manual":
            generation, deployment_id, required = crowd.promoted[row.actor]
            assert (generation, deployment_id) == (row.generation, row.to_deployment_id)
            assert required in {None, row.generation - 1}
            changed.add(row.actor)
    for who in crowd.promoted.keys() - changed:
        generation, deployment_id, _ = crowd.promoted[who]
        agent_id = crowd.ids[deployment_id.partition(".")[0]]
        assert by_generation[agent_id, generation].to_deployment_id == deployment_id
    assert len(changed) > OPERATIONS / 10
