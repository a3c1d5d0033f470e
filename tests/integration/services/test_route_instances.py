"""Route reads of deployments with instances."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest_asyncio

from services.routing.conversations import digest_of, keep_session
from services.routing.resolver import RouteResolver
from services.routing.routes import RouteKey
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.services.world import NAME, World
from tests.support.factories import incoming
from tests.support.instances import Instances
from tests.support.plans import explained

BY_NAME = RouteKey(name=NAME)
TWO = {"a": 'http://10.0.0.1:8000/"base"', "b": "http://10.0.0.2:8000"}


@pytest_asyncio.fixture
async def reads(settings: Settings) -> AsyncIterator[RouteResolver]:
    """The route resolver of one process."""
    async with RouteResolver(settings, application_name="reads") as reads:
        yield reads


async def test_a_route_carries_all_ready_instances(world: World, sessions: Sessions, reads: RouteResolver) -> None:
    """G66: with their addresses and ages; by name, by id, by deployment and in a session alike."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"))
    agent_id, instances = await world.agent_id(), Instances(sessions)
    await instances.add("v1", {**TWO, "gone": "http://10.0.0.3"}, ready_for=timedelta(seconds=3))
    await instances.fail("v1", "gone")
    await instances.add("v2", {"": "http://10.0.0.4"})
    session = digest_of(b"one")
    await world.do(lambda db: keep_session(db, agent_id, session, "v1"))
    by_id = RouteKey(agent_id=agent_id)
    for key in (BY_NAME, by_id, RouteKey(agent_id=agent_id, deployment_id="v1"), by_id.in_session(session)):
        route = await reads.find(key)
        assert {each.instance_id: each.acp_url for each in route.instances} == TWO
        for each in route.instances:
            assert (each.rpc_path, route.instance_id) == ("/api", None)
            assert timedelta(seconds=3) <= route.ready_for(each) < timedelta(seconds=20)
            assert datetime.now(UTC) - each.registered_at < timedelta(seconds=20)
    of_preview = await reads.find(RouteKey(agent_id=agent_id, deployment_id="v2"))
    assert [each.instance_id for each in of_preview.instances] == [""]


async def test_each_read_sees_the_instances_of_its_time(world: World, sessions: Sessions, reads: RouteResolver) -> None:
    """G66: what is kept in parsed form is never older than the read."""
    await world.register(incoming(deployment_id="v1"))
    instances = Instances(sessions)
    assert (await reads.find(BY_NAME)).instances == ()
    for count in range(1, 5):
        await instances.add("v1", {f"i{count}": f"http://10.0.0.{count}"}, ready_for=timedelta(0))
        first, second = [await reads.find(BY_NAME) for _ in range(2)]
        assert len(first.instances) == len(second.instances) == count
        assert first.read_at is not None
        assert second.read_at is not None
        assert first.read_at < second.read_at
    await instances.add("v1", {"i1": "http://10.0.0.9"})
    assert "http://10.0.0.9" in {each.acp_url for each in (await reads.find(BY_NAME)).instances}
    for count in range(1, 5):
        await instances.fail("v1", f"i{count}")
    route = await reads.find(BY_NAME)
    assert (route.instances, route.deployment_id) == ((), "v1")


async def test_without_named_instances_their_table_is_not_read(world: World, reads: RouteResolver) -> None:
    """G66: calls of other deployments do not pay for instances."""
    await world.register(incoming(deployment_id="v1"))
    agent_id = await world.agent_id()
    await reads.find(BY_NAME)
    parameters = f"'{{{agent_id}}}', '{{NULL}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}'"
    plan = await explained(reads._connection, 0, parameters, "ANALYZE, COSTS false, TIMING false")
    assert "instances_pkey on instances i (never executed)" in plan, plan
