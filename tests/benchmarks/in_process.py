"""Promotes as calls inside one process, without HTTP: those that share a commit, and those under the lock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter, process_time
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches import Batches, impatient
from contracts import topology
from services.domain.caller import Caller
from services.errors import PodiumError
from services.promotion.promote import promote
from services.promotion.together import Change, CutoversTogether, Made, Promote, Promoted, must_be_first
from services.registration.batch import Incoming, read_message, register_batch
from services.registration.parked import Envelope
from services.settings import Settings
from services.storage.database import Sessions, in_transaction, make_engine
from tests.benchmarks.cpu import cpu_seconds
from tests.benchmarks.fleet import announcements
from tests.benchmarks.measure import Bench
from tests.benchmarks.rows import Figures

BENCH = Caller(actor="bench")
WARM_UP = 2

Promoting = Callable[[UUID, str], Awaitable[None]]


async def promotes(bench: Bench, sessions: int, each: int) -> Figures:
    """The rate of promotes of as many agents as sessions, and the CPU time of each in ms.

    `promotes` is as the API makes them, `promotes_locked` each in a transaction of its own.
    """
    found: dict[str, float] = {}
    for name, way in (("promotes", _together), ("promotes_locked", _under_the_lock)):
        async with bench.fresh() as settings:
            engine = make_engine(settings, application_name="bench", pool_size=sessions)
            agents = await _register(engine, sessions)
            async with way(settings, engine) as make:
                await _make(make, agents, WARM_UP)
                before = process_time(), cpu_seconds(bench.database_pid)
                began = perf_counter()
                await _make(make, agents, each)
                seconds = perf_counter() - began
                after = process_time(), cpu_seconds(bench.database_pid)
            await engine.dispose()
        count = sessions * each
        found[name] = count / seconds
        found[f"{name}_api_ms"] = (after[0] - before[0]) * 1000 / count
        found[f"{name}_database_ms"] = (after[1] - before[1]) * 1000 / count
    return found


async def _register(engine: AsyncEngine, agents: int) -> dict[UUID, str]:
    batch = [_incoming(name, body) for name, body in announcements(agents)]
    await in_transaction(Sessions(engine), lambda session: register_batch(session, batch))
    async with engine.connect() as connection:
        return {row.id: row.name for row in await connection.execute(text("SELECT id, name FROM agents"))}


async def _make(make: Promoting, agents: dict[UUID, str], each: int) -> None:
    async def work(agent_id: UUID, name: str) -> None:
        for number in range(each):
            await make(agent_id, f"{name}-v{number % 2}")

    await asyncio.gather(*(work(agent_id, name) for agent_id, name in agents.items()))


@asynccontextmanager
async def _together(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Promoting]:
    """As `POST .../promote` does."""
    together = CutoversTogether(impatient(settings), application_name="bench", on_events=lambda: None)
    batches: Batches[Change, Made | PodiumError] = Batches(settings, together.make, must_be_first=must_be_first)

    try:
        async with _under_the_lock(settings, engine) as make_alone:

            async def make(agent_id: UUID, deployment_id: str) -> None:
                made = await batches.make(agent_id, Promote(agent_id, deployment_id, BENCH))
                if made is None:
                    await make_alone(agent_id, deployment_id)
                else:
                    assert isinstance(made, Promoted), made

            yield make
    finally:
        await batches.close()
        together.close()


@asynccontextmanager
async def _under_the_lock(_: Settings, engine: AsyncEngine) -> AsyncIterator[Promoting]:
    factory = Sessions(engine)

    async def make(agent_id: UUID, deployment_id: str) -> None:
        await in_transaction(factory, partial(promote, agent_id=agent_id, deployment_id=deployment_id, caller=BENCH))

    yield make


def _incoming(name: str, body: dict[str, object]) -> Incoming:
    return read_message(Envelope(topology.registration_key(name), to_json(body)))
