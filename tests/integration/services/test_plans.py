"""Lists in a large database are read from an index, and only as far as the page goes."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from services.agents.queries import deployments_question, get_agent_by_name, list_deployments
from services.domain.identity import EVERYBODY
from services.events.log import read_events
from services.promotion.history import history, history_question, served_at
from services.registration.inbox import Lifetime, recent_registrations, registrations_question
from services.registration.parked import list_parked
from services.routing.conversations import DEFAULT_TERMS
from services.storage.database import Sessions, in_transaction
from services.storage.pages import Page
from tests.support.lists import asked, list_agents

AGENTS = 2_000
# Newer than all that lives, and first in the order of ids.
TOMBSTONES = 5_000
FILL = f"""
INSERT INTO agents (name, created_at)
    SELECT 'agent-' || n, now() - n * interval '1 s' FROM generate_series(1, {AGENTS}) n;
INSERT INTO deployments (id, agent_id, status, status_changed_at, created_at)
    SELECT name || '-' || v, id, 'Pending', now(), now() - v * interval '1 s' FROM agents, generate_series(1, 5) v;
INSERT INTO promotions (agent_id, generation, cause, actor, at)
    SELECT id, g, 'manual', 'x', now() + g * interval '1 s' FROM agents, generate_series(1, 3) g;
INSERT INTO promotions (agent_id, generation, cause, actor, at)
    SELECT id, g, 'manual', 'x', now() + g * interval '1 s' FROM agents, generate_series(4, 3000) g
    WHERE name = 'agent-7';
INSERT INTO outbox (event_id, type, agent_id, agent_name, subject, sequence, generation, payload)
    SELECT gen_random_uuid(), 't', id, name, name, s, 1, '{{}}' FROM agents, generate_series(1, 3) s;
INSERT INTO registrations (message_id, agent_name, outcome)
    SELECT gen_random_uuid(), name, 'Registered' FROM agents, generate_series(1, 3);
INSERT INTO parked (key, agent_name, reason, error, routing_key, headers, body)
    SELECT name, name, 'r', 'e', 'k', '{{}}', '' FROM agents;
INSERT INTO agents (id, name, status, created_at, deleted_at)
    SELECT lpad(n::text, 32, '0')::uuid, 'gone-' || n, 'Deleted', now() + n * interval '1 s', now()
    FROM generate_series(1, {TOMBSTONES}) n;
INSERT INTO deployments (id, agent_id, status, status_changed_at, created_at, expires_at)
    SELECT 'gone-' || n, id, 'Pending', now(), now() + n * interval '1 s', now()
    FROM agents, generate_series(1, {TOMBSTONES}) n WHERE name = 'agent-7'
"""
SOME = replace(EVERYBODY, agents=("agent-*", "other"))
Read = Callable[[AsyncSession, Any], Awaitable[object]]
READS: dict[str, Read] = {
    "agents, newest first": lambda session, _: list_agents(session, Page()),
    "agents, oldest first": lambda session, _: list_agents(session, Page(direction="asc")),
    "agents by name": lambda session, _: list_agents(session, Page(order_by="name", direction="asc")),
    "agents by id": lambda session, _: list_agents(session, Page(order_by="id", direction="asc")),
    "agents behind no id": lambda session, _: list_agents(session, Page(after=UUID(int=0))),
    "agents behind an id": lambda session, agent: list_agents(session, Page(after=agent)),
    "agents of some names": lambda session, _: list_agents(session, Page(), SOME),
    "deployments, as the API asks": lambda session, agent: asked(
        session, deployments_question(agent, Page(), DEFAULT_TERMS)
    ),
    "the ledger, as the API asks": lambda session, agent: asked(session, history_question(agent, limit=50)),
    "announcements, as the API asks": lambda session, _: asked(session, registrations_question(Lifetime(), Page())),
    "announcements of some names": lambda session, _: asked(
        session, registrations_question(Lifetime(identity=SOME), Page())
    ),
    "an agent of a name": lambda session, _: get_agent_by_name(session, "agent-7"),
    "deployments of an agent, oldest first": lambda session, agent: list_deployments(
        session, agent, Page(direction="asc")
    ),
    "deployments of an agent": lambda session, agent: list_deployments(session, agent, Page()),
    "the ledger of an agent": lambda session, agent: history(session, agent, limit=50),
    "what served then": lambda session, agent: served_at(session, agent, datetime.now(UTC) + timedelta(hours=1)),
    "announcements of an agent": lambda session, _: recent_registrations(session, Lifetime("agent-7"), Page()),
    "announcements": lambda session, _: recent_registrations(session, Lifetime(), Page()),
    "parked messages": lambda session, _: list_parked(session, Page()),
    "parked messages of an agent": lambda session, _: list_parked(session, Page(), "agent-7"),
    "events of an agent": lambda session, agent: read_events(session, agent, (1,), 50),
    "all events": lambda session, _: read_events(session, None, (1, 0), 50),
}


@contextmanager
def statements(engine: AsyncEngine) -> Iterator[list[tuple[str, Any]]]:
    """The statements sent to the database while inside, with their parameters."""
    sent: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        sent.append((statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_no_list_reads_a_whole_table(filled: AsyncEngine) -> None:
    """G43: no plan goes through all rows of a table, nor through deleted ones, nor sorts more than the page shows."""
    sessions = Sessions(filled)
    async with filled.begin() as connection:
        for statement in FILL.split(";\n"):
            await connection.execute(text(statement))
        agent = await connection.scalar(text("SELECT id FROM agents WHERE name = 'agent-7'"))
    async with filled.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("VACUUM ANALYZE"))
    most: dict[str, float] = {}
    for name, read in READS.items():
        with statements(filled) as sent:
            await in_transaction(sessions, lambda session, read=read: read(session, agent))  # type: ignore[misc]
        async with filled.connect() as connection:
            for statement, parameters in sent:
                explained = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
                most[name] = max(most.get(name, 0), *_rows_read(explained.scalar_one()[0]["Plan"]))
    assert {name: rows for name, rows in most.items() if rows > 500} == {}


def _rows_read(plan: dict[str, Any]) -> list[float]:
    """The number of rows that each node of the plan read."""
    passed_by = sum(value for name, value in plan.items() if name.startswith("Rows Removed by"))
    here = (plan["Actual Rows"] + passed_by) * plan["Actual Loops"]
    return [here, *(rows for each in plan.get("Plans", []) for rows in _rows_read(each))]
