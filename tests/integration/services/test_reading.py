from uuid import UUID

import pytest

from services.agents import commands as lifecycle
from services.agents import queries
from services.agents.commands import AgentChange, NewDeployment
from services.agents.queries import AgentView
from services.errors import (
    AgentDeletedError,
    AgentNotFound,
    DeploymentUnavailable,
    InvalidRequest,
    NothingServes,
)
from services.promotion import promote as promotion
from services.promotion import rollback
from services.routing.routes import RouteKey
from services.storage.pages import Page
from tests.integration.services.world import AMY, NAME, World, read_route
from tests.support.factories import a_build, an_id, incoming
from tests.support.lists import list_agents


async def test_a_deleted_agent_can_be_read_but_not_changed(world: World) -> None:
    """G16: by id it reads as Deleted, by name it is unknown, everything else is 410."""
    await world.register(incoming(deployment_id="v1", acp_url="http://v1"), incoming(acp_url="http://legacy"))
    agent_id = await world.agent_id()
    await world.delete_agent()
    view = await world.do(lambda session: queries.get_agent(session, agent_id))
    assert (view.agent.status, view.acp_url) == ("Deleted", None)
    assert (await world.do(lambda session: queries.get_deployment(session, agent_id, "v1"))).deployment.expires_at
    assert await world.do(lambda session: list_agents(session, Page())) == []
    with pytest.raises(AgentNotFound):
        await world.do(lambda session: queries.get_agent_by_name(session, NAME))
    with pytest.raises(AgentNotFound):
        await world.do(lambda session: read_route(session, RouteKey(name=NAME)))
    for refused in (
        lambda session: read_route(session, RouteKey(agent_id=agent_id)),
        lambda session: read_route(session, RouteKey(agent_id=agent_id, deployment_id="v1")),
        lambda session: promotion.promote(session, agent_id, "v1", AMY),
        lambda session: rollback.roll_back(session, agent_id, AMY),
        lambda session: rollback.roll_back(session, agent_id, AMY, to="v1"),
        lambda session: rollback.roll_back(session, agent_id, AMY, to="legacy"),
        lambda session: lifecycle.change_agent(session, agent_id, AgentChange(description="x"), AMY),
        lambda session: lifecycle.create_deployment(session, agent_id, NewDeployment(docker_image="bot:1"), AMY),
    ):
        with pytest.raises(AgentDeletedError):
            await world.do(refused)


async def test_an_unknown_agent_is_not_found(world: World) -> None:
    """404 for every read."""
    unknown_id = an_id()
    for refused in (
        lambda session: queries.get_agent(session, unknown_id),
        lambda session: queries.get_deployment(session, unknown_id, "v1"),
        lambda session: queries.list_deployments(session, unknown_id, Page()),
        lambda session: read_route(session, RouteKey(agent_id=unknown_id)),
        lambda session: read_route(session, RouteKey(agent_id=unknown_id, deployment_id="v1")),
        lambda session: lifecycle.delete_agent(session, unknown_id, AMY),
        lambda session: lifecycle.delete_deployment(session, unknown_id, "v1", AMY),
        lambda session: lifecycle.change_agent(session, unknown_id, AgentChange(), AMY),
        lambda session: lifecycle.create_deployment(session, unknown_id, NewDeployment(docker_image="bot:1"), AMY),
    ):
        with pytest.raises(AgentNotFound):
            await world.do(refused)


async def test_routes_have_a_separate_error_for_each_reason(world: World) -> None:
    """Separate errors if nothing serves, for Failed and Pending; a preview has its own route, legacy the agent's."""
    await world.register(a_build())
    agent_id = await world.agent_id()
    with pytest.raises(NothingServes):
        await world.do(lambda session: read_route(session, RouteKey(agent_id=agent_id)))
    await world.arrive(acp_url="http://legacy/", rpc_path="/old")
    route = await world.do(lambda session: read_route(session, RouteKey(agent_id=agent_id)))
    assert (route.deployment_id, route.rpc_url) == (None, "http://legacy/old")
    await world.create(id="pending")
    with pytest.raises(DeploymentUnavailable, match="Pending"):
        await world.do(lambda session: read_route(session, RouteKey(agent_id=agent_id, deployment_id="pending")))
    await world.arrive(deployment_id="v1", acp_url="http://v1")
    route = await world.do(lambda session: read_route(session, RouteKey(agent_id=agent_id, deployment_id="v1")))
    assert route.rpc_url == "http://v1/api"
    await world.promote("v1")
    await world.fail("v1")
    with pytest.raises(DeploymentUnavailable, match="Failed: probe failed"):
        await world.do(lambda session: read_route(session, RouteKey(agent_id=agent_id)))


async def test_lists_are_paged_newest_first(world: World) -> None:
    """Pages are disjoint and complete in either direction, by page number and by `after`."""
    names = [f"bot-{number}" for number in range(5)]
    for name in names:
        await world.arrive(name, deployment_id=f"{name}.1")

    async def read(page: Page) -> list[AgentView]:
        return await world.do(lambda session: list_agents(session, page))

    newest_first = [await read(Page(limit=2, number=number)) for number in (1, 2, 3, 4)]
    assert [view.agent.name for page in newest_first for view in page] == names[::-1]
    oldest_first = [await read(Page(limit=2, number=number, direction="asc")) for number in (1, 2, 3)]
    assert [view.agent.name for page in oldest_first for view in page] == names
    seen: list[str] = []
    after = UUID(int=0)
    while views := await read(Page(limit=2, after=after)):
        seen += [view.agent.name for view in views]
        after = views[-1].agent.id
    assert sorted(seen) == names


@pytest.mark.parametrize("order_by", ["mood", "", "name; DROP TABLE agents"])
async def test_an_order_that_does_not_exist_is_refused_with_its_field(world: World, order_by: str) -> None:
    """400 with the field named."""
    await world.arrive(deployment_id="v1")
    agent_id = await world.agent_id()
    page = Page(order_by=order_by)
    for refused in (
        lambda session: list_agents(session, page),
        lambda session: queries.list_deployments(session, agent_id, page),
    ):
        with pytest.raises(InvalidRequest, match="order_by must be one of") as error:
            await world.do(refused)
        assert error.value.field == "order_by"
