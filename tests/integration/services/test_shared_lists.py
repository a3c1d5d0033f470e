"""Lists that callers share: never older than the call, nor of what a caller may not see; one read for all who wait."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import bindparam, select, text

from services.agents.queries import agents_question
from services.domain.identity import EVERYBODY, Identity
from services.errors import Unavailable
from services.settings import Settings
from services.storage.driver import PreparedConnection, Row
from services.storage.models import Agent
from services.storage.pages import Page
from services.storage.shared_lists import ListStatement, Question, SharedLists
from tests.integration.services.world import NAME, World

ALL = agents_question(Page(), EVERYBODY)
SLOW = Question("SELECT pg_sleep(60)", ())
END = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lists'")


@pytest_asyncio.fixture
async def lists(settings: Settings) -> AsyncIterator[SharedLists]:
    """The lists of one process."""
    async with SharedLists(settings, application_name="lists") as lists:
        yield lists


class HeldReads:
    """Holds back what the database has answered, until the test releases it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.arrived = asyncio.Event()
        self.go_on = asyncio.Event()
        ask = PreparedConnection.ask

        async def held(connection: PreparedConnection, sql: str, *values: object) -> list[Row]:
            self.asked.append(sql)
            rows = await ask(connection, sql, *values)
            self.arrived.set()
            await self.go_on.wait()
            return rows

        monkeypatch.setattr(PreparedConnection, "ask", held)


def served(rows: Sequence[Row]) -> list[Any]:
    """What serves each agent."""
    return [row["production_deployment_id"] for row in rows]


def names(rows: Sequence[Row]) -> set[Any]:
    """The names of the agents."""
    return {row["name"] for row in rows}


async def test_a_list_after_a_promote_never_joins_a_read_from_before_it(
    world: World, lists: SharedLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G97: who asks after the reply of a promote sees it, also while the same list is being read for others."""
    await world.arrive(deployment_id="v1")
    await world.arrive(deployment_id="v2")
    held = HeldReads(monkeypatch)
    before = asyncio.create_task(lists.read(ALL, served))
    await held.arrived.wait()
    await world.promote("v2")
    after = [asyncio.create_task(lists.read(ALL, served)) for _ in range(5)]
    await asyncio.sleep(0)
    held.go_on.set()
    assert await before == ["v1"]
    assert await asyncio.gather(*after) == [["v2"]] * 5
    assert len(held.asked) == 2, "all who wait are answered by one read"


async def test_callers_that_see_different_agents_share_nothing(
    world: World, lists: SharedLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G97: each list has what its caller may see, whoever asks for the same page at the same time."""
    for name in ("a-1", "a-2", "b-1", "a"):
        await world.arrive(name, deployment_id=f"{name}.v1")
    sees = {
        None: {"a-1", "a-2", "b-1", "a"},
        ("a-*",): {"a-1", "a-2"},
        ("a", "b-1"): {"a", "b-1"},
        ("b-*", "a"): {"a", "b-1"},
        ("nobody",): {None},
        ("%",): {None},
    }
    identities: list[Identity] = [replace(EVERYBODY, agents=agents) for agents in sees]
    held = HeldReads(monkeypatch)
    first = asyncio.create_task(lists.read(ALL, names))
    await held.arrived.wait()
    asked = [asyncio.create_task(lists.read(agents_question(Page(), each), names)) for each in identities * 2]
    await asyncio.sleep(0)
    held.go_on.set()
    await first
    assert await asyncio.gather(*asked) == [*sees.values()] * 2


async def test_a_caller_that_leaves_takes_nothing_from_others(
    world: World, lists: SharedLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others get the list."""
    await world.arrive(deployment_id="v1")
    held = HeldReads(monkeypatch)
    leaving = asyncio.create_task(lists.read(ALL, names))
    await held.arrived.wait()
    waiting = [asyncio.create_task(lists.read(ALL, names)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in (leaving, waiting[0]):
        task.cancel()
    await asyncio.wait((leaving, waiting[0]))
    held.go_on.set()
    assert await waiting[1] == {NAME}


async def test_a_slow_list_holds_up_no_other(world: World, settings: Settings) -> None:
    """It is given up in time, and is not asked again."""
    await world.arrive(deployment_id="v1")
    short = settings.model_copy(update={"database_timeout": timedelta(seconds=4)})
    async with SharedLists(short, application_name="lists") as lists:
        slow = asyncio.create_task(lists.read(SLOW, names))
        await asyncio.sleep(0)
        async with asyncio.timeout(1):
            assert await lists.read(ALL, names) == {NAME}
        with pytest.raises(Unavailable):
            await slow
        assert await lists.read(ALL, names) == {NAME}


async def test_a_lost_connection_is_replaced(world: World, lists: SharedLists) -> None:
    """No list fails."""
    await world.arrive(deployment_id="v1")
    for _ in range(3):
        assert await lists.read(ALL, names) == {NAME}
        await world.do(lambda session: session.execute(END))


async def test_a_database_that_cannot_be_reached(settings: Settings) -> None:
    """Each caller gets an error of its own; none hangs."""
    away = settings.model_copy(update={"database_url": SecretStr("postgresql://nobody@127.0.0.1:1/x")})
    async with SharedLists(away, application_name="lists") as lists:
        found = await asyncio.gather(*(lists.read(ALL, names) for _ in range(5)), return_exceptions=True)
    assert {type(each) for each in found} == {Unavailable}
    assert len({id(each) for each in found}) == len(found)


async def test_many_lists_wait_no_longer_than_one(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database answers nothing, each caller waits no longer than the limit, and leaves nothing to be read."""
    asked: list[str] = []

    async def hang(_: PreparedConnection, sql: str, *_values: object) -> list[Row]:
        asked.append(sql)
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(PreparedConnection, "ask", hang)
    short = settings.model_copy(update={"database_timeout": timedelta(seconds=0.5)})
    async with SharedLists(short, application_name="lists") as lists:
        waiting = [lists.read(replace(SLOW, values=(number,)), names) for number in range(40)]
        async with asyncio.timeout(2):
            found = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(each) for each in found} == {Unavailable}
        await asyncio.sleep(0.5)
        assert len(asked) < 20


def test_a_question_without_a_value_is_refused() -> None:
    """It would find nothing, and nobody would notice."""
    statement = ListStatement(select(Agent.id).where(Agent.name == bindparam("name"), Agent.generation > 3))
    assert statement.question({"name": "a"}).values == ("a", 3)
    with pytest.raises(KeyError):
        statement.question({})


async def test_a_defect_fails_its_list_only(world: World, lists: SharedLists) -> None:
    """A list that cannot be rendered is an error of Podium, not of the database."""
    await world.arrive(deployment_id="v1")
    with pytest.raises(ZeroDivisionError):
        await lists.read(ALL, lambda rows: len(rows) / 0)
    assert await lists.read(ALL, names) == {NAME}
