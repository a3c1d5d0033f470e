from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from services.registration.batch import Incoming
from tests.integration.services.world import World
from tests.support.factories import a_build, ago, incoming

MANY = 200
# Locks, facts, deployments, known messages, and writes of each table. Review a change of this number.
MOST = 14


@contextmanager
def counted(engine: AsyncEngine) -> Iterator[list[str]]:
    """The SQL statements sent while inside."""
    statements: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, parameters: Any, *_: Any) -> None:
        empty = [f"CAST(${number} AS jsonb)" for number, value in enumerate(parameters, start=1) if value == "[]"]
        parts = statement.split("\n), ")
        statements.append("\n), ".join(part for part in parts if not any(each in part for each in empty)))

    event.listen(engine.sync_engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", count)


KINDS: dict[str, Callable[[int], Incoming]] = {
    "new agents": lambda n: incoming(f"bot-{n}", deployment_id=f"bot-{n}.1"),
    "new legacy agents": lambda n: incoming(f"bot-{n}"),
    "builds": lambda n: a_build(f"bot-{n}"),
    "new previews of one agent": lambda n: incoming("served", deployment_id=f"v{n}"),
    "the same preview": lambda n: incoming("served", deployment_id="preview", acp_url=f"http://h{n}"),
    "stale messages": lambda _: incoming("served", deployment_id="served.1", registered_at=ago(3600)),
    "refused messages": lambda n: incoming("thief", deployment_id="served.1", acp_url=f"http://h{n}"),
    "malformed messages": lambda n: incoming("served", acp_url=f"nowhere-{n}"),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_number_of_statements_is_the_same_for_any_batch(world: World, engine: AsyncEngine, kind: str) -> None:
    """The number of SQL statements of `register_batch` is the same for 1 and for 200 messages of a kind."""
    await world.register(incoming("served", deployment_id="served.1"), incoming("served", deployment_id="preview"))
    make = KINDS[kind]
    with counted(engine) as for_one:
        await world.register(make(0))
    with counted(engine) as for_many:
        await world.register(*[make(number) for number in range(1, MANY + 1)])
    assert [_verb(each) for each in for_many] == [_verb(each) for each in for_one]
    assert len(for_one) <= MOST


def _verb(statement: str) -> str:
    """The start of a statement, enough to identify it."""
    return " ".join(statement.split()[:3])
