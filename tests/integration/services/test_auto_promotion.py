from itertools import permutations

import pytest

from tests.integration.services.world import World
from tests.support.factories import a_build, ago, incoming


async def with_policy(world: World, policy: str, name: str = "support-bot") -> None:
    """An agent without a pod and with this policy."""
    await world.register(a_build(name))
    await world.change(name, auto_promote=policy)


@pytest.mark.parametrize(("policy", "serves"), [("never", None), ("first", "v1"), ("always", "v2")])
async def test_the_policy_decides_what_is_promoted_automatically(world: World, policy: str, serves: str | None) -> None:
    """G9: `never` promotes nothing, `first` only while nothing serves, `always` every newer deployment."""
    await with_policy(world, policy)
    await world.arrive(deployment_id="v1", registered_at=ago(20))
    await world.arrive(deployment_id="v2", registered_at=ago(10))
    assert await world.production() == serves


async def test_under_always_the_newest_serves_whatever_the_order(world: World) -> None:
    """G3: all orders of four deployments' messages, some in one batch, end with the newest in production."""
    for number, order in enumerate(permutations(range(4))):
        name = f"bot-{number}"
        await with_policy(world, "always", name)
        batch = [incoming(name, deployment_id=f"{name}.{age}", registered_at=ago(10 + age)) for age in order]
        if number % 2:
            await world.register(*batch)
        else:
            for message in batch:
                await world.register(message)
        assert await world.production(name) == f"{name}.0", f"order of ages {order}"


async def test_always_does_not_overtake_a_promote_by_an_older_message(world: World) -> None:
    """G9: a deployment published before the last explicit promote stays a preview; one published later serves."""
    await with_policy(world, "always")
    await world.arrive(deployment_id="v1", registered_at=ago(60))
    await world.arrive(deployment_id="v2", registered_at=ago(50))
    await world.promote("v1")
    await world.arrive(deployment_id="v3", registered_at=ago(5))
    assert await world.production() == "v1"
    await world.arrive(deployment_id="v4", registered_at=ago(-5))
    assert await world.production() == "v4"


async def test_a_promote_that_changes_nothing_still_counts_as_the_last_one(world: World) -> None:
    """G9: an explicit promote counts, even if the deployment was in production already."""
    await with_policy(world, "always")
    await world.arrive(deployment_id="v1", registered_at=ago(60))
    await world.promote("v1")
    await world.arrive(deployment_id="v2", registered_at=ago(5))
    assert await world.production() == "v1"


async def test_a_deployment_is_considered_once_at_its_first_ready(world: World) -> None:
    """G9: a preview that registers again stays a preview, even if nothing serves any more."""
    await with_policy(world, "never")
    await world.arrive(deployment_id="v1", registered_at=ago(10))
    await world.change(auto_promote="always")
    await world.arrive(deployment_id="v1", registered_at=ago(5))
    assert await world.production() is None
    await world.arrive(deployment_id="v2", registered_at=ago(4))
    assert await world.production() == "v2"


async def test_a_failed_production_is_still_what_serves(world: World) -> None:
    """G9: `first` does not replace a production that has failed."""
    await world.arrive(deployment_id="v1")
    await world.fail("v1")
    await world.arrive(deployment_id="v2")
    assert await world.production() == "v1"


@pytest.mark.parametrize("ended_by", ["nothing", "promote", "promote of what serves", "settings"])
async def test_a_rollback_pauses_automatic_promotion_until_an_operator_ends_it(world: World, ended_by: str) -> None:
    """G9: after a rollback, the next deployment of a pipeline is not promoted automatically."""
    await with_policy(world, "always")
    await world.arrive(deployment_id="v1", registered_at=ago(60))
    await world.arrive(deployment_id="v2", registered_at=ago(50))
    await world.roll_back()
    assert (await world.agent()).auto_promote_paused
    if ended_by == "promote":
        await world.promote("v2")
    elif ended_by == "promote of what serves":
        await world.promote("v1")
    elif ended_by == "settings":
        await world.change(auto_promote_paused=False)
    paused = ended_by == "nothing"
    assert (await world.agent()).auto_promote_paused is paused
    await world.arrive(deployment_id="v3", registered_at=ago(-5))
    assert (await world.production() == "v3") is not paused


async def test_a_pre_created_deployment_is_considered_when_its_pod_comes(world: World) -> None:
    """G9: Pending is not Ready; the first registration makes the deployment Ready."""
    await world.register(a_build())
    await world.create(id="v1")
    assert await world.production() is None
    await world.arrive(deployment_id="v1")
    assert await world.production() == "v1"
    assert await world.event_types() == [
        "agent.registered",
        "deployment.created",
        "deployment.ready",
        "deployment.promoted",
    ]


async def test_a_pre_created_deployment_overtakes_a_serving_one_under_always(world: World) -> None:
    """G9: it serves if its message is newer than the first one of the production; only one flag is set at any time."""
    await with_policy(world, "always")
    await world.create(id="v2")
    await world.arrive(deployment_id="v1", registered_at=ago(20))
    await world.arrive(deployment_id="v2", registered_at=ago(10))
    assert await world.causes() == [("always", "v1"), ("always", "v2")]
