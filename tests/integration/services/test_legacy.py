from tests.integration.services.world import World
from tests.support.factories import a_build, ago, incoming

IN_A_MOMENT = -5  # ago(): published after everything that the test does before


async def test_a_preview_of_a_legacy_agent_does_not_take_its_traffic(world: World) -> None:
    """G9: `first` applies only if nothing serves, and the legacy address serves."""
    await world.arrive(acp_url="http://legacy")
    await world.arrive(deployment_id="v1")
    assert await world.production() is None
    assert (await world.agent()).legacy_acp_url == "http://legacy"
    assert await world.causes() == [("legacy", "legacy")]


async def test_a_legacy_agent_after_a_build_serves_and_keeps_its_previews_out(world: World) -> None:
    """G9: the same is true if the agent was built first, and within one batch."""
    await world.register(a_build(), incoming(acp_url="http://legacy"), incoming(deployment_id="v1"))
    assert await world.production() is None


async def test_a_late_legacy_message_does_not_undo_a_promote(world: World) -> None:
    """G12: published before the promote, it stores the address, is Shadowed, and traffic stays."""
    await world.arrive(acp_url="http://legacy", registered_at=ago(60))
    await world.arrive(deployment_id="v1")
    await world.promote("v1")
    before = await world.agent()
    assert await world.arrive(acp_url="http://late", registered_at=ago(30)) == "Shadowed"
    after = await world.agent()
    assert (after.legacy_acp_url, after.production_deployment_id) == ("http://late", "v1")
    assert after.generation == before.generation
    assert await world.arrive(acp_url="http://older", registered_at=ago(45)) == "Stale"
    assert (await world.agent()).legacy_acp_url == "http://late"


async def test_a_newer_legacy_message_with_a_new_url_takes_over(world: World) -> None:
    """G12: the legacy address takes over on purpose: production is cleared, with cause and event."""
    await world.arrive(acp_url="http://legacy")
    await world.arrive(deployment_id="v1")
    await world.promote("v1")
    assert await world.arrive(acp_url="http://new", registered_at=ago(IN_A_MOMENT)) == "Registered"
    assert await world.production() is None
    assert await world.causes() == [("legacy", "legacy"), ("manual", "v1"), ("legacy", "legacy")]
    assert (await world.event_types())[-2:] == ["deployment.demoted", "agent.registered"]
    demoted = (await world.events())[-2]
    assert (demoted.payload["cause"], demoted.payload["acp_url"]) == ("legacy", "http://new")


async def test_a_legacy_pod_that_only_restarts_does_not_take_over(world: World) -> None:
    """G12: the same URL announced again later is not a new deployment while production is Ready."""
    await world.arrive(acp_url="http://legacy")
    await world.arrive(deployment_id="v1")
    await world.promote("v1")
    assert await world.arrive(acp_url="http://legacy", registered_at=ago(IN_A_MOMENT)) == "Shadowed"
    assert await world.production() == "v1"


async def test_a_legacy_pod_that_restarts_rescues_an_agent_whose_production_failed(world: World) -> None:
    """G12: while production is not Ready, a later announcement of the same URL takes over."""
    await world.arrive(acp_url="http://legacy")
    await world.arrive(deployment_id="v1")
    await world.promote("v1")
    await world.fail("v1")
    assert await world.arrive(acp_url="http://legacy", registered_at=ago(IN_A_MOMENT)) == "Registered"
    assert await world.production() is None
    assert (await world.agent()).status == "Ready"
    assert (await world.event_types())[-1] == "deployment.demoted"


async def test_each_new_legacy_address_is_a_generation_announced_by_the_agent(world: World) -> None:
    """G14: what serves changed, so the ledger grows; `agent.registered` carries generation and address."""
    for number, url in enumerate(("http://a", "http://a", "http://b"), start=1):
        await world.arrive(acp_url=url, registered_at=ago(10 - number))
    assert await world.causes() == [("legacy", "legacy")] * 2
    events = [(event.type, event.generation, event.payload["acp_url"]) for event in await world.events()]
    assert events == [
        ("podium.agent.registered.v1", 1, "http://a"),
        ("podium.agent.registered.v1", 2, "http://b"),
    ]


async def test_a_promote_does_not_touch_the_legacy_address(world: World) -> None:
    """The legacy address stays as announced, so a rollback can return to it."""
    await world.arrive(acp_url="http://legacy")
    await world.arrive(deployment_id="v1", acp_url="http://v1")
    await world.promote("v1")
    assert (await world.agent()).legacy_acp_url == "http://legacy"
