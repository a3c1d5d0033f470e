"""Route reads: a call sees everything committed before it arrived, and an unavailable database blocks no call."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from services.errors import AgentNotFound, DeploymentNotFound, NothingServes, Unavailable
from services.routing.resolver import RouteResolver
from services.routing.routes import RouteKey, Row, arguments
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.services.proxy import Proxy, running_proxy
from tests.integration.services.world import NAME, World
from tests.support.factories import a_build, incoming
from tests.support.plans import explained
from tests.support.waiting import eventually

BY_NAME = RouteKey(name=NAME)
ENDS_CONNECTIONS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name = 'reads' AND datname = current_database()"
)


@pytest_asyncio.fixture
async def reads(settings: Settings) -> AsyncIterator[RouteResolver]:
    """The route resolver of one process."""
    async with RouteResolver(settings, application_name="reads") as reads:
        yield reads


class HeldResults:
    """Holds back results of the database after they have arrived, until the test releases them."""

    def __init__(self, reads: RouteResolver) -> None:
        self._read = reads._rows
        self.keys: list[set[RouteKey]] = []
        self.arrived = asyncio.Event()
        self.go_on = asyncio.Event()
        # Nothing else allows a test to act between the arrival of a result and its use.
        reads._rows = self._hold  # type: ignore[method-assign]

    async def _hold(self, keys: Collection[RouteKey]) -> list[Row]:
        self.keys.append(set(keys))
        rows = await self._read(keys)
        self.arrived.set()
        await self.go_on.wait()
        return rows


async def two_versions(world: World) -> UUID:
    """An agent with v1 in production and v2 as a preview."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"))
    return await world.agent_id()


async def test_a_call_after_a_promote_never_joins_a_read_from_before_it(world: World, reads: RouteResolver) -> None:
    """G11: a read that runs during the commit of a promote answers only calls that arrived before it."""
    await two_versions(world)
    held = HeldResults(reads)
    before = asyncio.create_task(reads.find(BY_NAME))
    await held.arrived.wait()
    await world.promote("v2")
    after = [asyncio.create_task(reads.find(BY_NAME)) for _ in range(5)]
    await asyncio.sleep(0)
    held.go_on.set()
    assert (await before).deployment_id == "v1"
    assert {(await each).deployment_id for each in after} == {"v2"}
    assert len(held.keys) == 2, "all who wait are answered by one read"


async def test_one_read_answers_all_kinds_of_keys(world: World, reads: RouteResolver) -> None:
    """By id, by name, by deployment, and legacy; each key without a route gets its own error."""
    agent_id = await two_versions(world)
    await world.register(incoming("old", acp_url="http://old"), a_build("nothing-yet"))
    keys: dict[RouteKey, Any] = {
        BY_NAME: "v1",
        RouteKey(agent_id=agent_id): "v1",
        RouteKey(agent_id=agent_id, deployment_id="v2"): "v2",
        RouteKey(agent_id=agent_id, deployment_id="v3"): DeploymentNotFound,
        RouteKey(name="old"): None,
        RouteKey(name="nothing-yet"): NothingServes,
        RouteKey(name="nobody"): AgentNotFound,
        RouteKey(agent_id=UUID(int=1)): AgentNotFound,
        RouteKey(agent_id=UUID(int=1), deployment_id="v1"): AgentNotFound,
    }
    held = HeldResults(reads)
    first = asyncio.create_task(reads.find(BY_NAME))
    await held.arrived.wait()
    tasks = {key: asyncio.create_task(reads.find(key)) for key in keys for _ in range(3)}
    await asyncio.sleep(0)
    held.go_on.set()
    await first
    for key, expected in keys.items():
        if isinstance(expected, type):
            with pytest.raises(expected):
                await tasks[key]
        else:
            assert (await tasks[key]).deployment_id == expected
    assert held.keys == [{BY_NAME}, set(keys)]


async def test_a_cancelled_call_does_not_affect_others(world: World, reads: RouteResolver) -> None:
    """Other calls that wait for the same read get their routes."""
    await two_versions(world)
    held = HeldResults(reads)
    leaving, staying = (asyncio.create_task(reads.find(BY_NAME)) for _ in range(2))
    await held.arrived.wait()
    leaving.cancel()
    await asyncio.wait((leaving,))
    held.go_on.set()
    assert (await staying).deployment_id == "v1"


async def test_a_lost_connection_is_replaced(world: World, reads: RouteResolver) -> None:
    """After a restart of the database, or of a proxy in between, no call fails."""
    await two_versions(world)
    for _ in range(3):
        assert (await reads.find(BY_NAME)).deployment_id == "v1"
        assert await world.do(lambda session: session.scalar(ENDS_CONNECTIONS))


@pytest_asyncio.fixture
async def proxy(settings: Settings) -> AsyncIterator[Proxy]:
    """A proxy between the resolver and its database."""
    url = make_url(settings.database_url.get_secret_value())
    assert url.host is not None
    assert url.port is not None
    async with running_proxy(url.host, url.port) as proxy:
        yield proxy


def through(proxy: Proxy, settings: Settings, **changes: Any) -> Settings:
    """The settings of a process that connects through this proxy."""
    url = make_url(settings.database_url.get_secret_value()).set(host="127.0.0.1", port=proxy.port)
    changes["database_url"] = SecretStr(url.render_as_string(hide_password=False))
    return settings.model_copy(update=changes)


async def test_a_frozen_database_blocks_no_call(world: World, settings: Settings, proxy: Proxy) -> None:
    """Each call fails within twice the time limit of a read, also a later one; afterwards calls work again."""
    await two_versions(world)
    limit = timedelta(seconds=0.5)
    async with RouteResolver(through(proxy, settings, route_timeout=limit), application_name="reads") as reads:
        assert (await reads.find(BY_NAME)).deployment_id == "v1"
        proxy.freeze()
        calls = [asyncio.create_task(reads.find(BY_NAME))]
        await asyncio.sleep(0.1)
        calls += [asyncio.create_task(reads.find(BY_NAME)) for _ in range(20)]
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {Unavailable}
        assert len({id(answer) for answer in answers}) == len(calls), "each call has an error of its own"
        proxy.thaw()

        async def works() -> bool:
            try:
                return (await reads.find(BY_NAME)).deployment_id == "v1"
            except Unavailable:
                return False

        await eventually(works, "routes are read again")


async def test_an_unavailable_database_is_reported_at_once(world: World, settings: Settings, proxy: Proxy) -> None:
    """The next call after it is back works, without a pause."""
    await two_versions(world)
    async with RouteResolver(through(proxy, settings), application_name="reads") as reads:
        assert (await reads.find(BY_NAME)).deployment_id == "v1"
        await proxy.stop()
        async with asyncio.timeout(2):
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await reads.find(BY_NAME)
        await proxy.start()
        assert (await reads.find(BY_NAME)).deployment_id == "v1"


async def test_a_plan_from_an_empty_database_stays_right(filled: AsyncEngine) -> None:
    """The statement is planned once, on empty tables without statistics; it looks keys up in indexes all the same."""
    own = Settings(database_url=SecretStr(filled.url.render_as_string(hide_password=False)))
    world = World(Sessions(filled))
    async with RouteResolver(own, application_name="reads") as reads:
        with pytest.raises(AgentNotFound):
            await reads.find(BY_NAME)
        by_id = {"deployments_pkey", "deployments_id_agent_id_key"}
        for number in range(2):
            plan = await explained(reads._connection, number, ", ".join(["'{}'"] * len(arguments(()))))
            assert "Seq Scan" not in plan
            assert "Hash" not in plan
            scans = re.findall(r"Index (?:Only )?Scan using (\w+)", plan)
            assert len(scans) == plan.count("Index Cond"), "an index is read from end to end"
            assert len(scans) >= 4
            by_key = {"agents_pkey", "agents_name_of_living_key", "conversations_pkey", "instances_pkey"}
            by_key |= {"keys_version_pkey"}
            assert set(scans) <= by_key | by_id
            assert "instances_pkey" in scans
        await two_versions(world)
        assert (await reads.find(BY_NAME)).deployment_id == "v1"
