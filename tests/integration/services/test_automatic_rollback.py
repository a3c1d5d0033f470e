"""Automatic rollback: from a failed production, if the policy says so, to a target that has answered a probe."""

from dataclasses import replace
from typing import Any

import pytest

from services.domain.state import AgentSnapshot
from services.promotion.rollback import roll_back_failed, rollback_candidates
from services.promotion.rollback_targets import Target
from tests.integration.services.world import NAME, World
from tests.support.factories import incoming

V1, V2 = f"{NAME}.v1", f"{NAME}.v2"


async def failed_production(world: World, **change: Any) -> list[Target]:
    """The rollback targets of an agent whose second version is in production and has failed."""
    await world.two_versions()
    await world.promote(V2)
    await world.change(**{"on_failure": "rollback", **change})
    await world.fail(V2)
    return await targets(world, V2)


async def targets(world: World, deployment_id: str) -> list[Target]:
    """The targets of an automatic rollback away from this deployment."""
    agent_id = await world.agent_id()
    return await world.do(lambda session: rollback_candidates(session, agent_id, deployment_id))


async def roll_back(world: World, target: Target) -> AgentSnapshot:
    """The agent after an automatic rollback to this target."""
    agent_id = await world.agent_id()
    return await world.do(lambda session: roll_back_failed(session, agent_id, V2, target))


async def test_an_automatic_rollback_pauses_automatic_promotion(world: World) -> None:
    """The ledger row has cause `rollback`, actor `podium`, the reason of the failure, and the restored generation."""
    [target] = await failed_production(world)
    state = await roll_back(world, target)
    assert (state.agent.production_deployment_id, state.agent.auto_promote_paused) == (V1, True)
    row = (await world.ledger())[-1]
    assert (row.cause, row.actor, row.restored) == ("rollback", "podium", 1)
    assert row.reason == f"Deployment {V2} is Failed: probe failed"
    assert (await roll_back(world, target)).events == ()


async def test_only_a_failed_production_with_the_policy_has_targets(world: World) -> None:
    """Only a production, only a Failed one, and only with the policy `rollback`."""
    assert await failed_production(world, on_failure="hold") == []
    await world.change(on_failure="rollback")
    assert [each.deployment_id for each in await targets(world, V2)] == [V1]
    assert await targets(world, V1) == []
    await world.arrive(deployment_id=V2)
    assert await targets(world, V2) == []


@pytest.mark.parametrize("meanwhile", ["held", "revived", "promoted", "moved", "deleted"])
async def test_a_change_during_the_probe_stops_the_rollback(world: World, meanwhile: str) -> None:
    """All conditions are checked again under the lock."""
    [target] = await failed_production(world)
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
    assert (await roll_back(world, target)).agent.generation == generation
    assert (await world.agent()).generation == generation


async def test_the_legacy_address_is_a_target(world: World) -> None:
    """It served before, so it is a target like any other."""
    await world.arrive(acp_url="http://legacy")
    await world.arrive(deployment_id=V2)
    await world.promote(V2)
    await world.change(on_failure="rollback")
    await world.fail(V2)
    [target] = await targets(world, V2)
    assert (target.deployment_id, target.url) == (None, "http://legacy/healthz")
    state = await roll_back(world, replace(target, restored=None))
    assert (state.agent.production_deployment_id, state.agent.status) == (None, "Ready")
