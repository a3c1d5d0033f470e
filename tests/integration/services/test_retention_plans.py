"""The queries of retention and history stay cheap as tables grow: they read about as many rows as they return."""

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from services.agents.queries import get_deployment, list_deployments
from services.events.log import remove_published
from services.promotion.history import history, served_at
from services.promotion.rollback_targets import last_served
from services.registration.inbox import remove_decided
from services.registration.parked import remove_parked
from services.retention.versions import StepLimits, delete_old_previews, purge_deleted
from services.storage.database import Sessions
from services.storage.pages import Page

Question = Callable[[AsyncSession, UUID], Awaitable[Any]]

# 300 agents, one of which has 3,000 of the 12,000 versions and 6,000 generations. A fifth of the versions is deleted.
FILL = """
INSERT INTO agents (name, event_seq, generation)
SELECT 'bot-' || n, 1000000, 10000 FROM generate_series(0, 299) AS n;
INSERT INTO deployments (id, agent_id, status, status_changed_at, acp_url, created_at, expires_at, promoted_at)
SELECT 'v' || n, agents.id, 'Ready', now(), 'http://h', now() - n * interval '5 minutes',
    CASE WHEN n % 5 = 0 THEN now() - n * interval '3 minutes' END,
    CASE WHEN n % 2 = 0 THEN now() - n * interval '1 s' END
FROM generate_series(1, 12000) AS n JOIN agents ON name = 'bot-' || CASE WHEN n <= 3000 THEN 0 ELSE n % 300 END;
INSERT INTO promotions (agent_id, generation, cause, actor, to_deployment_id, to_acp_url, at)
SELECT id, n, 'manual', 'amy', 'v' || n % 3000 + 1, 'http://h', now() - (6001 - n) * interval '1 minute'
FROM generate_series(1, 6000) AS n, agents WHERE name = 'bot-0';
INSERT INTO registrations (message_id, agent_name, deployment_id, registered_at, outcome, received_at)
SELECT gen_random_uuid(), 'bot-' || n % 300, 'v' || n, now() - n * interval '1 minute', 'Registered',
    now() - n * interval '1 minute' FROM generate_series(1, 20000) AS n;
INSERT INTO outbox (event_id, type, agent_id, agent_name, subject, sequence, generation, payload, published_at)
SELECT gen_random_uuid(), 'podium.deployment.created.v1', agents.id, name, 'v1', n, 1, '{}',
    now() - (20000 - n) * interval '1 minute'
FROM generate_series(1, 20000) AS n JOIN agents ON name = 'bot-' || n % 300 ORDER BY n;
INSERT INTO parked (key, agent_name, reason, error, routing_key, headers, body, received_at)
SELECT n, 'bot-' || n % 300, 'malformed', 'no', 'agent.bot', '{}', 'x', now() - n * interval '5 minutes'
FROM generate_series(1, 12000) AS n;
"""
# The planner often scans such small tables, because that is fast; it does not scan larger ones.
_PREFER_INDEXES = text("SET LOCAL enable_seqscan = off")
# A fourth of the smallest table; a step reads 100 rows, and 20 others for each of them.
MOST_READ = 3000


def ago(days: float) -> datetime:
    """This many days ago."""
    return datetime.now(UTC) - timedelta(days=days)


def limits(days: float) -> StepLimits:
    """A step of 100 rows."""
    return StepLimits(before=ago(days), keep=20, rows=100)


QUESTIONS: dict[str, Question] = {
    "old previews": lambda session, _: delete_old_previews(session, limits(7)),
    "no old previews": lambda session, _: delete_old_previews(session, limits(1000)),
    "deleted versions": lambda session, _: purge_deleted(session, limits(7)),
    "no deleted versions": lambda session, _: purge_deleted(session, limits(1000)),
    "published events": lambda session, _: remove_published(session, ago(7), 100),
    "no published events": lambda session, _: remove_published(session, ago(1000), 100),
    "decided announcements": lambda session, _: remove_decided(session, ago(7), 100),
    "no decided announcements": lambda session, _: remove_decided(session, ago(1000), 100),
    "parked messages": lambda session, _: remove_parked(session, ago(7), 100),
    "no parked messages": lambda session, _: remove_parked(session, ago(1000), 100),
    "the ledger": lambda session, agent_id: history(session, agent_id, limit=50),
    "an older page of it": lambda session, agent_id: history(session, agent_id, limit=50, offset=1000),
    "what served then": lambda session, agent_id: served_at(session, agent_id, ago(2)),
    "when a version served last": lambda session, agent_id: last_served(session, agent_id, "v7"),
    "a version": lambda session, agent_id: get_deployment(session, agent_id, "v7"),
    "the newest versions": lambda session, agent_id: list_deployments(session, agent_id, Page(limit=50)),
}


@pytest_asyncio.fixture(scope="module")
async def big(filled: AsyncEngine) -> UUID:
    """The agent with the most versions, in a large database with statistics."""
    async with filled.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for statement in filter(str.strip, FILL.split(";\n")):
            await connection.execute(text(statement))
        await connection.execute(text("VACUUM ANALYZE"))
        agent_id = await connection.scalar(text("SELECT id FROM agents WHERE name = 'bot-0'"))
    assert isinstance(agent_id, UUID)
    return agent_id


@pytest.mark.parametrize("question", QUESTIONS)
async def test_no_query_scans_a_table(filled: AsyncEngine, big: UUID, question: str) -> None:
    """Neither with many matching rows, nor with none."""
    sent: list[tuple[str, Any]] = []

    def listen(*arguments: Any) -> None:
        sent.append((arguments[2], arguments[3]))

    async with Sessions(filled)() as session:
        connection = await session.connection()
        event.listen(connection.sync_connection, "before_cursor_execute", listen)
        await QUESTIONS[question](session, big)
        event.remove(connection.sync_connection, "before_cursor_execute", listen)
        await session.rollback()
        await session.execute(_PREFER_INDEXES)
        driver: Any = (await (await session.connection()).get_raw_connection()).driver_connection
        for statement, parameters in sent:
            [[plan]] = await driver.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *parameters)
            for node in nodes(plan[0]["Plan"]):
                read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                assert read * node["Actual Loops"] <= MOST_READ, node
        await session.rollback()
    assert sent


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan that read tables or indexes."""
    if "Scan" in plan["Node Type"]:
        yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)
