"""Promotes and rollbacks of two processes that share commits, beside all other changes of the same agents, at random.

CHAOS=long: 100,000 operations. With `-s` the test prints its counts.
"""

# ruff: noqa: D102 - the name of an operation describes it

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.testing import capture_logs

from api.batches import Batches, impatient
from services.agents.commands import AgentChange, change_agent, delete_deployment
from services.domain.caller import Caller
from services.domain.health_policy import ProbeResult
from services.domain.state import AgentSnapshot
from services.errors import Busy, PodiumError, Unavailable
from services.health.probes import claim, give_verdicts
from services.promotion.promote import promote
from services.promotion.rollback import LEGACY, Plan, roll_back
from services.promotion.rollback_targets import Target
from services.promotion.together import (
    Change,
    CutoversTogether,
    Made,
    PlanRollback,
    Promote,
    Result,
    RollBack,
    must_be_first,
)
from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.chaos.size import LIMIT_SECONDS, LONG, SIZE
from tests.support.factories import over_http
from tests.support.invariants import assert_invariants
from tests.support.reference_model.cutovers import Asked, Generation, generation_of, judge
from tests.support.shuffle import FRESH_SEED
from tests.support.waiting import rows

T = TypeVar("T")
Process = Batches[Change, Made | PodiumError]

OPERATIONS = 100_000 if SIZE is LONG else 1_200
AGENTS = 200 if SIZE is LONG else 24
CALLERS = 64
VERSIONS = 6
# One failed probe is enough, so that targets of rollbacks fail and come back.
PROBING = Settings(probe_threshold=1, probe_interval=timedelta(seconds=1))

pytestmark = pytest.mark.timeout(LIMIT_SECONDS)


@dataclass
class Crowd:
    """The processes, the agents, and what callers have asked for and got, by their names."""

    sessions: Sessions
    processes: list[Process]
    random: random.Random
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(16))
    """Fewer than the connections of the pool, for which nobody must wait long on a busy machine."""
    ids: dict[str, UUID] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    """The newest generation of each agent that a caller has seen."""
    asked: dict[str, Asked] = field(default_factory=dict)
    got: dict[str, tuple[str, int]] = field(default_factory=dict)
    """The agent and the generation of each answer."""
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The agent and the name of the error."""
    counts: Counter[str] = field(default_factory=Counter)

    async def run(self, operations: int) -> None:
        """One caller after another, each with a name of its own."""
        kinds: list[tuple[Callable[[str, str, str], Awaitable[object]], int]] = [
            (self.promote_together, 40),
            (self.roll_back_together, 30),
            (self.promote_locked, 4),
            (self.roll_back_locked, 4),
            (self.announce, 10),
            (self.delete, 4),
            (self.pause, 3),
            (self.fail, 2),
        ]
        works, weights = zip(*kinds, strict=True)
        for number in range(operations):
            [work] = self.random.choices(works, weights)
            name = self.random.choice(list(self.ids))
            version = f"{name}.v{self.random.randrange(VERSIONS)}"
            who = f"{id(asyncio.current_task())}.{number}"
            self.counts[work.__name__] += 1
            try:
                await work(name, version, who)
            except PodiumError as refusal:
                self.counts[type(refusal).__name__] += 1
                # On a busy machine, the database may not respond in time: then the outcome is unknown.
                is_unknown = isinstance(refusal, Unavailable) and not isinstance(refusal, Busy)
                if who in self.asked and not is_unknown:
                    self.refused[who] = name, type(refusal).__name__

    async def promote_together(self, name: str, version: str, who: str) -> None:
        caller = self._asked(name, who, version)
        await self._together(
            name,
            Promote(self.ids[name], version, caller),
            lambda session: self._promoted(session, name, version, caller),
        )

    async def roll_back_together(self, name: str, version: str, who: str) -> None:
        """Half of them to the target that was planned, as over HTTP."""
        to = self._somewhere(version)
        caller = self._asked(name, who, to, rollback=True)
        probed = await self._planned(name, to, caller) if self.random.random() < 0.5 else None
        wanted = RollBack(self.ids[name], to, caller, probed)
        await self._together(
            name, wanted, lambda session: roll_back(session, wanted.agent_id, caller, to=to, probed=probed)
        )

    async def promote_locked(self, name: str, version: str, who: str) -> None:
        caller = self._asked(name, who, version)
        await self._locked(name, caller, lambda session: self._promoted(session, name, version, caller))

    async def roll_back_locked(self, name: str, version: str, who: str) -> None:
        to = self._somewhere(version)
        caller = self._asked(name, who, to, rollback=True)
        await self._locked(name, caller, lambda session: roll_back(session, self.ids[name], caller, to=to))

    async def announce(self, name: str, version: str, who: str) -> None:
        message = over_http(name, deployment_id=version, acp_url=f"http://{who}:8000")
        await self._in_transaction(lambda session: register_batch(session, [message]))

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

    async def fail(self, _: str, __: str, ___: str) -> None:
        """A verdict on some pods; their next announcement makes them Ready again."""
        targets = await self._in_transaction(lambda session: claim(session, PROBING, 3))
        results = [ProbeResult(each, "cannot connect (Connection refused)") for each in targets]
        given = await self._in_transaction(lambda session: give_verdicts(session, results))
        self.counts["failed"] += sum(1 for each in given if each is not None)

    def _somewhere(self, version: str) -> str | None:
        return self.random.choices((None, LEGACY, version), (6, 1, 3))[0]

    async def _planned(self, name: str, to: str | None, caller: Caller) -> Sequence[Target] | None:
        process = self.random.choice(self.processes)
        made = await process.make(self.ids[name], PlanRollback(self.ids[name], to, caller))
        if isinstance(made, PodiumError):
            raise made
        if not isinstance(made, Plan):
            return None
        return () if made.target is None else (made.target,)

    async def _together(
        self, name: str, change: Promote | RollBack, alone: Callable[[AsyncSession], Awaitable[AgentSnapshot]]
    ) -> None:
        process = self.random.choice(self.processes)
        kind = type(change).__name__
        made = await process.make(self.ids[name], change)
        if made is None:
            self.counts[f"{kind} under the lock"] += 1
            with process.alone(self.ids[name]):
                await self._locked(name, change.caller, alone)
            return
        self.counts[f"{kind} grouped"] += 1
        if isinstance(made, PodiumError):
            raise made
        assert not isinstance(made, Plan)
        self._answered(name, change.caller, made.state)

    async def _locked(
        self, name: str, caller: Caller, work: Callable[[AsyncSession], Awaitable[AgentSnapshot]]
    ) -> None:
        self._answered(name, caller, await self._in_transaction(work))

    async def _promoted(self, session: AsyncSession, name: str, version: str, caller: Caller) -> AgentSnapshot:
        return await promote(session, self.ids[name], version, caller)

    async def _in_transaction(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        async with self.turns:
            return await in_transaction(self.sessions, work)

    def _asked(self, name: str, who: str, to: str | None, *, rollback: bool = False) -> Caller:
        if_generation = self.generations[name] if self.random.random() < 0.4 else None
        self.asked[who] = Asked(rollback, to, if_generation)
        return Caller(actor=who, if_generation=if_generation)

    def _answered(self, name: str, caller: Caller, state: AgentSnapshot) -> None:
        generation = state.agent.generation
        self.generations[name] = max(self.generations[name], generation)
        self.got[caller.actor] = name, generation


@asynccontextmanager
async def a_process(settings: Settings, failures: list[Exception]) -> AsyncIterator[Process]:
    """The cutovers of an API process; a batch that fails adds to `failures`, unless it gave way to a lock."""
    together = CutoversTogether(impatient(settings), application_name="together", on_events=lambda: None)

    async def make(changes: Sequence[Change]) -> list[Result]:
        try:
            return await together.make(changes)
        except Busy:
            raise
        except Exception as error:
            failures.append(error)
            raise

    batches: Process = Batches(settings, make, must_be_first=must_be_first)
    yield batches
    await batches.close()
    together.close()


async def test_changes_of_all_kinds_at_once(settings: Settings, sessions: Sessions) -> None:
    """G89: no constraint is violated, the ledger and the events have no gaps, and each caller got what was written.

    The reference model makes the same ledger of the same requests, in the order of the events.
    """
    failures: list[Exception] = []
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(a_process(settings, failures)) for _ in range(2)]
        crowd = Crowd(sessions, processes, random.Random(FRESH_SEED))  # noqa: S311 - not a secret
        names = [f"bot-{number}" for number in range(AGENTS)]
        pods = [over_http(name, acp_url="http://legacy:1") for name in names]
        pods += [over_http(name, deployment_id=f"{name}.v{number}") for name in names for number in range(VERSIONS)]
        await in_transaction(sessions, lambda session: register_batch(session, pods))
        crowd.ids = {row.name: row.id for row in await rows(sessions, "SELECT name, id FROM agents")}
        crowd.generations = dict.fromkeys(crowd.ids, 1)
        with capture_logs() as logs:
            await asyncio.gather(*(crowd.run(OPERATIONS // CALLERS + 1) for _ in range(CALLERS)))
    crowd.counts["retries"] = sum(1 for entry in logs if entry.get("action") == "transaction.retry")
    print(f"seed {FRESH_SEED}, {time.monotonic() - began:.0f} s: {dict(sorted(crowd.counts.items()))}")  # noqa: T201 - figures
    assert all(isinstance(each, Unavailable) for each in failures)
    assert crowd.counts["Unavailable"] <= OPERATIONS / 100
    assert crowd.counts["Promote grouped"] > OPERATIONS / 20
    assert crowd.counts["RollBack grouped"] > OPERATIONS / 40
    await in_transaction(sessions, assert_invariants)
    await _assert_explained(crowd)


async def _assert_explained(crowd: Crowd) -> None:
    """Every answer is in the ledger, no refusal is, and the model makes the same ledger."""
    ledger: dict[str, dict[int, Generation]] = defaultdict(dict)
    for row in await rows(
        crowd.sessions, "SELECT p.*, a.name FROM promotions AS p JOIN agents AS a ON a.id = p.agent_id"
    ):
        ledger[row.name][row.generation] = generation_of(row)
    changed = {each.actor: (name, generation) for name, own in ledger.items() for generation, each in own.items()}
    assert not changed.keys() & crowd.refused.keys()
    for who, (name, generation) in crowd.got.items():
        if who in changed:
            assert changed[who] == (name, generation)
        else:  # it served already
            assert ledger[name][generation].to == crowd.asked[who].to
    for who, (name, error) in crowd.refused.items():
        if error == "GenerationMismatch":
            assert max(ledger[name]) > (crowd.asked[who].if_generation or 0)
    events: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for row in await rows(
        crowd.sessions, "SELECT agent_name, type, subject, generation FROM outbox ORDER BY agent_name, sequence"
    ):
        kind = row.type.removeprefix("podium.").removesuffix(".v1")
        events[row.agent_name].append((kind, row.subject, row.generation))
    for name, own in events.items():
        judge(name, own, ledger[name], crowd.asked)
