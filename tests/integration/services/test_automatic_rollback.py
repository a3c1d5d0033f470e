"""Going back by itself: from a production that has failed, while the policy says so, to what was asked and answered."""

from dataclasses import replace
from typing import Any

import pytest

from services.domain.state import AgentSnapshot
from services.promotion.rollback import roll_back_failed, rollback_candidates
from services.promotion.rollback_targets import Target
from tests.integration.services.world import NAME, World
from tests.support.factories import incoming

V1, V2 = f"{NAME}.v1", f"{NAME}.v2"


async def failed(world: World, **change: Any) -> list[Target]:
    """Where an agent may go whose second version is in production and has failed."""
    await world.two_versions()
    await world.promote(V2)
    await world.change(**{"on_failure": "rollback", **change})
    await world.fail(V2)
    return await targets(world, V2)


async def targets(world: World, deployment_id: str) -> list[Target]:
    """Where the agent may go from this deployment."""
    agent_id = await world.agent_id()
    return await world.do(lambda session: rollback_candidates(session, agent_id, deployment_id))


async def go(world: World, target: Target) -> AgentSnapshot:
    """The agent after it was told to go to this target."""
    agent_id = await world.agent_id()
    return await world.do(lambda session: roll_back_failed(session, agent_id, V2, target))


async def test_it_goes_back_and_automation_pauses(world: World) -> None:
    """A row of the ledger with its own cause and actor, the reason of the failure, and what it restored."""
    [target] = await failed(world)
    state = await go(world, target)
    assert (state.agent.production_deployment_id, state.agent.auto_promote_paused) == (V1, True)
    row = (await world.ledger())[-1]
    assert (row.cause, row.actor, row.restored) == ("rollback", "podium", 1)
    assert row.reason == f"Deployment {V2} is Failed: probe failed"
    assert (await go(world, target)).events == ()


async def test_nothing_flees_that_is_held_or_lives(world: World) -> None:
    """Only a production, only a failed one, only with the policy."""
    assert await failed(world, on_failure="hold") == []
    await world.change(on_failure="rollback")
    assert [each.deployment_id for each in await targets(world, V2)] == [V1]
    assert await targets(world, V1) == []
    await world.arrive(deployment_id=V2)
    assert await targets(world, V2) == []


@pytest.mark.parametrize("meanwhile", ["held", "revived", "promoted", "moved", "deleted"])
async def test_what_changes_while_the_target_is_asked_stops_it(world: World, meanwhile: str) -> None:
    """Under the lock, all of it must still be so."""
    [target] = await failed(world)
    if meanwhile == "held":
        await world.change(on_failure="hold")
    elif meanwhile == "revived":
        await world.arrive(deployment_id=V2)
    elif meanwhile == "promoted":
        await world.promote(V1)
    elif meanwhile == "moved":
        await world.register(incoming(deployment_id=V1, acp_url="http://new"))
    else:
        await world.delete(V1)
    generation = (await world.agent()).generation
    assert (await go(world, target)).agent.generation == generation
    assert (await world.agent()).generation == generation


async def test_the_legacy_address_is_a_way_back(world: World) -> None:
    """It served before, so it is asked like any other."""
    await world.arrive(acp_url="http://legacy")
    await world.arrive(deployment_id=V2)
    await world.promote(V2)
    await world.change(on_failure="rollback")
    await world.fail(V2)
    [target] = await targets(world, V2)
    assert (target.deployment_id, target.url) == (None, "http://legacy/healthz")
    state = await go(world, replace(target, restored=None))
    assert (state.agent.production_deployment_id, state.agent.status) == (None, "Ready")
