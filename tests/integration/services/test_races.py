import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from services.agents import commands as lifecycle
from services.agents.commands import AgentChange, NewDeployment
from services.domain.caller import Caller
from services.errors import DeploymentDeletedError, GenerationMismatch, ProductionCannotBeDeleted
from services.promotion import promote as promotion
from services.registration.batch import Incoming, register_batch
from services.storage.store import lock_agent
from tests.integration.services.world import AMY, NAME, World, settled
from tests.support.factories import ago, an_id, incoming

Work = Callable[[AsyncSession], Awaitable[Any]]


async def one_after_the_other(world: World, first: Work, second: Awaitable[Any]) -> Any:
    """The result of `second`, which starts before `first` is committed; a refusal is returned, not raised."""
    async with world.uncommitted() as session:
        await first(session)
        waiting = asyncio.create_task(settled(second))
        await world.until_blocked()
        assert not waiting.done()
    return await waiting


V1, V2 = f"{NAME}.v1", f"{NAME}.v2"


def registering(*batch: Incoming) -> Work:
    """A transaction that decides this batch."""
    return lambda session: register_batch(session, batch)


async def test_a_promote_waits_for_another_and_decides_on_what_that_left(world: World) -> None:
    """G1: the second promote demotes what the first one put into production, not what it saw before the wait."""
    await world.two_versions()
    await world.arrive(deployment_id="v3")
    agent_id = await world.agent_id()
    state = await one_after_the_other(
        world, lambda session: promotion.promote(session, agent_id, V2, AMY), world.promote("v3")
    )
    assert (state.agent.production_deployment_id, state.agent.generation) == ("v3", 3)
    assert await world.causes() == [("first", V1), ("manual", V2), ("manual", "v3")]


async def test_a_registration_that_waited_for_a_promote_does_not_undo_it(world: World) -> None:
    """G2: production re-registers while another version is promoted: its flag stays false, its address is new."""
    await world.two_versions()
    agent_id = await world.agent_id()
    outcome = await one_after_the_other(
        world,
        lambda session: promotion.promote(session, agent_id, V2, AMY),
        world.arrive(deployment_id=V1, acp_url="http://new"),
    )
    assert outcome == "Registered"
    assert ((await world.deployment(V1)).is_production, (await world.deployment(V1)).acp_url) == (False, "http://new")
    assert await world.production() == V2


async def test_a_promote_that_waited_for_a_registration_serves_the_new_address(world: World) -> None:
    """G1: the promote's event and ledger row name the address that the pod has announced meanwhile."""
    await world.two_versions()
    message = incoming(deployment_id=V2, acp_url="http://new")
    await one_after_the_other(world, registering(message), world.promote(V2))
    assert (await world.ledger())[-1].to_acp_url == "http://new"
    assert (await world.events())[-1].payload["acp_url"] == "http://new"


async def test_a_promote_that_waited_for_a_deletion_is_refused(world: World) -> None:
    """G7: 410; production is never a deleted deployment."""
    await world.two_versions()
    agent_id = await world.agent_id()
    refused = await one_after_the_other(
        world, lambda session: lifecycle.delete_deployment(session, agent_id, V2, AMY), world.promote(V2)
    )
    assert isinstance(refused, DeploymentDeletedError)
    assert await world.production() == V1


async def test_a_deletion_that_waited_for_a_promote_is_refused(world: World) -> None:
    """G13: 409; the preview became production meanwhile."""
    await world.two_versions()
    agent_id = await world.agent_id()
    refused = await one_after_the_other(
        world, lambda session: promotion.promote(session, agent_id, V2, AMY), world.delete(V2)
    )
    assert isinstance(refused, ProductionCannotBeDeleted)
    assert (await world.deployment(V2)).expires_at is None


CONDITIONAL_CHANGES: dict[str, Callable[[AsyncSession, UUID], Awaitable[Any]]] = {
    "delete the agent": lambda session, agent_id: lifecycle.delete_agent(
        session, agent_id, Caller(actor="amy", if_generation=1)
    ),
    "delete a deployment": lambda session, agent_id: lifecycle.delete_deployment(
        session, agent_id, V2, Caller(actor="amy", if_generation=1)
    ),
    "create a deployment": lambda session, agent_id: lifecycle.create_deployment(
        session, agent_id, NewDeployment(docker_image="bot:1", id="v3"), Caller(actor="amy", if_generation=1)
    ),
    "change the agent": lambda session, agent_id: lifecycle.change_agent(
        session, agent_id, AgentChange(description="new"), Caller(actor="amy", if_generation=1)
    ),
}


@pytest.mark.parametrize("name", CONDITIONAL_CHANGES)
async def test_a_conditional_change_that_waited_for_a_promote_is_refused(world: World, name: str) -> None:
    """G49: 412; the condition is checked after the wait for the agent's row, and the promote has ended generation 1."""
    await world.two_versions()
    agent_id = await world.agent_id()
    refused = await one_after_the_other(
        world,
        lambda session: promotion.promote(session, agent_id, V2, AMY),
        world.do(lambda session: CONDITIONAL_CHANGES[name](session, agent_id)),
    )
    assert isinstance(refused, GenerationMismatch)


async def test_a_legacy_message_that_waited_for_a_promote_is_shadowed(world: World) -> None:
    """G12: published before the promote was decided, it does not take the traffic back."""
    sent = ago(0)
    await world.arrive(acp_url="http://legacy", registered_at=ago(60))
    await world.arrive(deployment_id="v1")
    agent_id = await world.agent_id()
    outcome = await one_after_the_other(
        world,
        lambda session: promotion.promote(session, agent_id, "v1", AMY),
        world.arrive(acp_url="http://new", registered_at=sent),
    )
    assert outcome == "Shadowed"
    assert await world.production() == "v1"


async def test_two_first_deployments_at_once_make_one_promotion(world: World) -> None:
    """G9: the second one finds that something serves, though nothing did when it started."""
    outcome = await one_after_the_other(
        world, registering(incoming(deployment_id="v1")), world.arrive(deployment_id="v2")
    )
    assert outcome == "Registered"
    assert await world.causes() == [("first", "v1")]


async def test_a_registration_that_waited_for_its_agent_s_deletion_is_stale(world: World) -> None:
    """G16: it was published before the deletion, so it neither revives the agent nor creates a new one."""
    await world.two_versions()
    agent_id, sent = await world.agent_id(), ago(0)
    outcome = await one_after_the_other(
        world,
        lambda session: lifecycle.delete_agent(session, agent_id, AMY),
        world.arrive(deployment_id="v3", registered_at=sent),
    )
    assert outcome == "Stale"
    assert ((await world.agent()).id, (await world.agent()).status) == (agent_id, "Deleted")


async def test_a_newer_registration_that_waited_for_its_agent_s_deletion_makes_a_new_agent(world: World) -> None:
    """G16: it was published after the deletion, so it creates a new agent of the name."""
    await world.two_versions()
    agent_id = await world.agent_id()
    outcome = await one_after_the_other(
        world,
        lambda session: lifecycle.delete_agent(session, agent_id, AMY),
        world.arrive(deployment_id="v3", registered_at=ago(-20)),
    )
    assert outcome == "Registered"
    assert (await world.agent()).id != agent_id
    assert await world.production() == "v3"


async def test_a_batch_whose_agent_is_deleted_before_it_is_locked_runs_again(world: World) -> None:
    """The agent existed when missing ones were inserted, but not when it is locked: a new one is created."""
    await world.two_versions()
    agent_id = await world.agent_id()
    async with world.uncommitted() as session:
        await lock_agent(session, agent_id)
        waiting = asyncio.create_task(world.arrive(deployment_id="v3", registered_at=ago(-20)))
        await world.until_blocked()
        await lifecycle.delete_agent(session, agent_id, AMY)
    assert await waiting == "Registered"
    assert (await world.agent()).id != agent_id
    assert await world.causes() == [("first", "v3")]


async def test_a_deletion_that_waited_for_a_registration_deletes_the_new_deployment(world: World) -> None:
    """G16: no deployment of a deleted agent stays undeleted."""
    await world.two_versions()
    await one_after_the_other(world, registering(incoming(deployment_id="v3")), world.delete_agent())
    assert (await world.deployment("v3")).expires_at is not None


async def test_one_deployment_id_claimed_by_two_agents_at_once_goes_to_the_first(world: World) -> None:
    """G5: the insert of the second one waits, loses, and is decided again: it is parked and leaves nothing else."""
    outcome = await one_after_the_other(
        world, registering(incoming("bot-a", deployment_id="v1")), world.arrive("bot-b", deployment_id="v1")
    )
    assert outcome == "Rejected"
    assert [each.reason for each in await world.parked()] == ["deployment-of-another-agent"]
    assert len((await world.contents())["agents"]) == 1


async def test_a_transaction_that_waited_for_a_discarded_agent_creates_it(world: World) -> None:
    """A refused first message deletes its new agent in the same transaction; a waiting transaction is not affected."""
    await world.arrive("owner", deployment_id="v1")
    outcome = await one_after_the_other(
        world, registering(incoming(deployment_id="v1")), world.arrive(deployment_id="v2")
    )
    assert outcome == "Registered"
    assert await world.production() == "v2"


async def test_one_message_delivered_to_two_workers_at_once_has_one_effect(world: World) -> None:
    """G3: the second one is a Duplicate, for a new agent and for an unreadable message alike."""
    message, poison = incoming(deployment_id="v1"), incoming(deployment_id="v1", acp_url="nowhere")
    outcomes = await one_after_the_other(world, registering(message, poison), world.register(poison, message))
    assert outcomes == ["Rejected", "Duplicate"]
    assert [(row.outcome, row.deployment_id) for row in await world.inbox()] == [
        ("Registered", "v1"),
        ("Rejected", None),
    ]
    assert [each.attempts for each in await world.parked()] == [1]


async def test_one_message_id_used_by_two_agents_at_once_is_decided_once(world: World) -> None:
    """G3: the message id identifies a message; the second one with the same id is a Duplicate without any effect."""
    message_id = str(an_id())
    first = incoming("bot-a", deployment_id="a1", message_id=message_id)
    outcome = await one_after_the_other(
        world, registering(first), world.arrive("bot-b", deployment_id="b1", message_id=message_id)
    )
    assert outcome == "Duplicate"
    contents = await world.contents()
    assert (len(contents["agents"]), len(contents["deployments"]), len(contents["registrations"])) == (1, 1, 1)


async def test_new_names_in_opposite_order_do_not_deadlock(world: World) -> None:
    """Agents are inserted in name order. In arrival order, each transaction would hold what the other one waits for."""
    names = ("bot-a", "bot-m", "bot-z")
    batches = [[incoming(name) for name in names], [incoming(name) for name in reversed(names)]]

    async def without_retry(batch: list[Incoming]) -> None:
        async with world.uncommitted() as session:
            await register_batch(session, batch)

    async with world.uncommitted() as session:
        await register_batch(session, [incoming("bot-m")])
        waiting = [asyncio.create_task(without_retry(batch)) for batch in batches]
        await world.until_blocked(2)
        await session.rollback()
    await asyncio.gather(*waiting)
    assert len((await world.contents())["agents"]) == 3
