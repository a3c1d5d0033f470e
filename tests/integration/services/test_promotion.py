import pytest

from services.domain.caller import Caller
from services.errors import (
    AgentDeletedError,
    AgentNotFound,
    DeploymentDeletedError,
    DeploymentNotFound,
    DeploymentNotReady,
    GenerationMismatch,
    PodiumError,
)
from services.promotion import promote as promotion
from services.routing.routes import RouteKey
from tests.integration.services.world import AMY, World, read_route
from tests.support.factories import a_build, an_id, incoming


async def two_versions(world: World) -> None:
    """v1 in production since generation 1, v2 a Ready preview."""
    await world.register(incoming(deployment_id="v1", acp_url="http://v1"))
    await world.register(incoming(deployment_id="v2", acp_url="http://v2", docker_image="bot:2"))


async def test_a_promote_cuts_over_and_reports_it(world: World) -> None:
    """One generation, one ledger row, one `promoted` event that names actor, reason and what served before."""
    await two_versions(world)
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    state = await world.promote("v2", caller=Caller(actor="amy", reason="Greets better.", traceparent=traceparent))
    assert (state.agent.production_deployment_id, state.agent.generation) == ("v2", 2)
    event = (await world.events())[-1]
    assert (event.type, event.traceparent) == ("podium.deployment.promoted.v1", traceparent)
    reported = {
        name: event.payload[name] for name in ("deployment_id", "cause", "actor", "reason", "acp_url", "docker_image")
    }
    assert reported == {
        "deployment_id": "v2",
        "cause": "manual",
        "actor": "amy",
        "reason": "Greets better.",
        "acp_url": "http://v2",
        "docker_image": "bot:2",
    }
    assert event.payload["previous"] == {"deployment_id": "v1", "acp_url": "http://v1", "docker_image": None}


async def test_a_route_read_after_a_promote_gets_the_new_version(world: World) -> None:
    """G11: a route read after the commit is the new one, by id and by name."""
    await two_versions(world)
    agent_id = await world.agent_id()
    for version in ("v2", "v1", "v2"):
        state = await world.promote(version)
        for route in (
            await world.do(lambda session: read_route(session, RouteKey(agent_id=agent_id))),
            await world.do(lambda session: read_route(session, RouteKey(name="support-bot"))),
        ):
            assert (route.deployment_id, route.generation) == (version, state.agent.generation)
            assert route.rpc_url == f"http://{version}/api"


async def test_promoting_what_serves_changes_nothing(world: World) -> None:
    """G10: idempotent: no generation, no event, `promoted_at` kept, whatever If-Match says, Failed or not."""
    await two_versions(world)
    await world.promote("v2")
    await world.fail("v2")
    before = await world.contents(without=frozenset({"agents"}))
    for caller in (AMY, Caller(actor="amy", if_generation=1), Caller(actor="amy", if_generation=2)):
        state = await world.promote("v2", caller=caller)
        assert state.agent.generation == 2
    assert await world.contents(without=frozenset({"agents"})) == before


async def test_promoting_what_serves_writes_neither_event_nor_row(world: World) -> None:
    """G10: only the time of the request is stored, for G9."""
    await two_versions(world)
    before = await world.contents(without=frozenset({"agents"}))
    updated_at = (await world.agent()).updated_at
    await world.promote("v1")
    assert await world.contents(without=frozenset({"agents"})) == before
    assert (await world.agent()).updated_at == updated_at


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("unknown", DeploymentNotFound),
        ("mail-1", DeploymentNotFound),
        ("deleted", DeploymentDeletedError),
        ("v1", None),
        ("pending", GenerationMismatch),
        ("v2", GenerationMismatch),
    ],
)
async def test_promote_checks_in_a_fixed_order(world: World, target: str, expected: type[PodiumError] | None) -> None:
    """G10: 404 (also another agent's), 410, in production already, 412; each comes before the next."""
    await two_versions(world)
    await world.arrive("mail-bot", deployment_id="mail-1")
    await world.arrive(deployment_id="deleted")
    await world.delete("deleted")
    await world.create(id="pending")
    old = Caller(actor="amy", if_generation=99)
    before = await world.contents(without=frozenset({"agents"}))
    if expected is None:
        await world.promote(target, caller=old)
    else:
        with pytest.raises(expected):
            await world.promote(target, caller=old)
    assert await world.contents(without=frozenset({"agents"})) == before


async def test_only_a_ready_deployment_can_be_promoted(world: World) -> None:
    """G10: 409 with Pending, or Failed and its reason, if If-Match matches or is absent."""
    await two_versions(world)
    await world.create(id="pending")
    await world.fail("v2")
    for caller in (AMY, Caller(actor="amy", if_generation=1)):
        with pytest.raises(DeploymentNotReady, match="Pending"):
            await world.promote("pending", caller=caller)
        with pytest.raises(DeploymentNotReady, match=r"Failed: probe failed"):
            await world.promote("v2", caller=caller)


async def test_if_match_lets_one_of_two_promotes_pass(world: World) -> None:
    """G10: a promote with the current generation passes, and the generation it makes refuses the next."""
    await two_versions(world)
    await world.arrive(deployment_id="v3")
    looked_at = Caller(actor="amy", if_generation=1)
    await world.promote("v2", caller=looked_at)
    with pytest.raises(GenerationMismatch, match="generation 2, not 1"):
        await world.promote("v3", caller=looked_at)
    assert await world.production() == "v2"


async def test_nothing_of_a_deleted_agent_can_be_promoted(world: World) -> None:
    """G7 and G16: 410 for its own deployments, 404 for others', and an unknown agent is 404."""
    await two_versions(world)
    await world.delete_agent()
    with pytest.raises(AgentDeletedError):
        await world.promote("v2")
    with pytest.raises(DeploymentNotFound):
        await world.promote("unknown")
    unknown = an_id()
    with pytest.raises(AgentNotFound):
        await world.do(lambda session: promotion.promote(session, unknown, "v1", AMY))


async def test_the_first_promote_of_a_build_makes_it_ready(world: World) -> None:
    """An agent with the policy `never` serves after its first explicit promote."""
    await world.register(a_build())
    await world.change(auto_promote="never")
    await world.arrive(deployment_id="v1")
    assert (await world.agent()).status == "BuildOnly"
    await world.promote("v1")
    assert (await world.agent()).status == "Ready"


async def test_a_serving_deployment_that_moves_is_announced_and_routed(world: World) -> None:
    """A new address of production adds no generation; `deployment.ready` reports it, and calls go there."""
    await two_versions(world)
    await world.arrive(deployment_id="v1", acp_url="http://moved/base/", rpc_path="rpc")
    route = await world.do(lambda session: read_route(session, RouteKey(name="support-bot")))
    assert (route.rpc_url, route.generation) == ("http://moved/base/rpc", 1)
    event = (await world.events())[-1]
    assert (event.type, event.payload["acp_url"]) == ("podium.deployment.ready.v1", "http://moved/base/")
    assert event.payload["is_production"] is True
