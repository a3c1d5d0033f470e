"""The targets of a rollback are found quickly in a long ledger, because the agent is locked meanwhile."""

from collections.abc import Awaitable, Callable
from time import perf_counter
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.promotion.rollback_targets import rollback_targets
from services.storage.database import Sessions

GENERATIONS = 50_000
# Reading the whole ledger took 150 ms on the machine where this was measured, an early end takes 3 to 10 ms.
MOST_SECONDS = 0.06
# a and b served in turn; d was in production once, long ago, as was c, which is Failed.
FILL = f"""
INSERT INTO agents (name) VALUES ('bot');
INSERT INTO deployments (id, agent_id, status, status_changed_at, created_at, acp_url, promoted_at)
SELECT v.id, agents.id, CASE v.id WHEN 'c' THEN 'Failed' ELSE 'Ready' END, now(), now(), 'http://' || v.id, now()
FROM unnest(ARRAY['a', 'b', 'c', 'd']) AS v(id), agents;
INSERT INTO promotions (agent_id, generation, cause, actor, to_deployment_id, to_acp_url, at)
SELECT agents.id, n, 'manual', 'amy', v.id, 'http://' || v.id, now() - ({GENERATIONS} - n) * interval '1 second'
FROM generate_series(1, {GENERATIONS}) AS n, agents,
    LATERAL (SELECT CASE WHEN n = 1 THEN 'd' WHEN n = 2 THEN 'c' WHEN n % 2 = 0 THEN 'a' ELSE 'b' END AS id) AS v;
UPDATE deployments SET is_production = true WHERE id = 'a';
UPDATE agents SET event_seq = {GENERATIONS}, generation = {GENERATIONS}, production_deployment_id = 'a'
"""


@pytest_asyncio.fixture(scope="module")
async def agent_id(filled: AsyncEngine) -> UUID:
    """An agent with a long ledger."""
    async with filled.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for statement in FILL.split(";\n"):
            await connection.execute(text(statement))
        await connection.execute(text("VACUUM ANALYZE"))
        found = await connection.scalar(text("SELECT id FROM agents"))
    assert isinstance(found, UUID)
    return found


@pytest_asyncio.fixture
async def targets(filled: AsyncEngine, agent_id: UUID) -> Callable[[int], Awaitable[tuple[list[str | None], float]]]:
    """Reads at most this many targets; returns their ids and the seconds of the fastest of three reads."""

    async def read(limit: int) -> tuple[list[str | None], float]:
        seconds = []
        for _ in range(3):
            async with Sessions(filled)() as session:
                began = perf_counter()
                found = await rollback_targets(session, agent_id, limit=limit)
                seconds.append(perf_counter() - began)
        return [target.deployment_id for target in found], min(seconds)

    return read


@pytest.mark.parametrize("limit", [1, 10])
async def test_targets_of_a_long_ledger_are_found_quickly(
    targets: Callable[[int], Awaitable[tuple[list[str | None], float]]], limit: int
) -> None:
    """G56: with 50,000 generations; targets other than the first are searched among the last ones only."""
    found, seconds = await targets(limit)
    print(f"at most {limit}: {seconds * 1000:.1f} ms")  # noqa: T201 - the measured values
    assert found == ["b"]
    assert seconds < MOST_SECONDS


async def test_the_only_target_is_found_however_old_it_is(
    filled: AsyncEngine, targets: Callable[[int], Awaitable[tuple[list[str | None], float]]]
) -> None:
    """G17: if nothing newer can serve, the walk goes to the end of the ledger; without candidates it does not begin."""
    async with filled.begin() as connection:
        await connection.execute(text("UPDATE deployments SET status = 'Failed' WHERE id = 'b'"))
    found, seconds = await targets(1)
    print(f"the oldest generation: {seconds * 1000:.1f} ms")  # noqa: T201 - the measured values
    assert found == ["d"]
    async with filled.begin() as connection:
        await connection.execute(text("UPDATE deployments SET status = 'Failed' WHERE id = 'd'"))
    found, seconds = await targets(10)
    print(f"no target: {seconds * 1000:.1f} ms")  # noqa: T201 - the measured values
    assert found == []
    assert seconds < MOST_SECONDS
