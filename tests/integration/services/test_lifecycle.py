from typing import Any

import pytest

from services.agents import queries
from services.errors import (
    AgentDeletedError,
    DeploymentDeletedError,
    DeploymentNotFound,
    DeploymentOfAnotherAgent,
    ImageConflict,
    ProductionCannotBeDeleted,
)
from services.promotion import history
from services.routing.routes import RouteKey
from services.storage.models import Agent
from services.storage.pages import Page
from tests.integration.services.world import World, read_route
from tests.support.factories import a_build, ago, incoming

COLUMNS = list(Agent.__table__.columns.keys())


async def test_production_cannot_be_deleted(world: World) -> None:
    """G13: 409, and nothing changes; it can be deleted once another version serves."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"))
    before = await world.contents()
    with pytest.raises(ProductionCannotBeDeleted):
        await world.delete("v1")
    assert await world.contents() == before
    await world.promote("v2")
    await world.delete("v1")
    assert (await world.deployment("v1")).expires_at is not None


async def test_a_deleted_preview_leaves_the_lists_and_stays_for_audit(world: World) -> None:
    """G13: one event reports it, calls cannot reach it, and its id can still be read; a second time changes nothing."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"))
    await world.delete("v2")
    assert (await world.event_types())[-1] == "deployment.deleted"
    before = await world.contents()
    await world.delete("v2")
    assert await world.contents() == before
    agent_id = await world.agent_id()
    listed = await world.do(lambda session: queries.list_deployments(session, agent_id, Page()))
    assert [each.deployment.id for each in listed] == ["v1"]
    read = await world.do(lambda session: queries.get_deployment(session, agent_id, "v2"))
    assert read.deployment.expires_at is not None
    with pytest.raises(DeploymentDeletedError):
        await world.do(lambda session: read_route(session, RouteKey(agent_id=agent_id, deployment_id="v2")))


async def test_another_agent_s_deployment_is_not_found(world: World) -> None:
    """G5: for another agent everything is 404, so that ids cannot be guessed."""
    await world.register(incoming(deployment_id="v1"), incoming("mail-bot", deployment_id="mail-1"))
    agent_id = await world.agent_id()
    with pytest.raises(DeploymentNotFound):
        await world.delete("mail-1")
    with pytest.raises(DeploymentNotFound):
        await world.promote("mail-1")
    with pytest.raises(DeploymentNotFound):
        await world.roll_back(to="mail-1")
    with pytest.raises(DeploymentNotFound):
        await world.do(lambda session: queries.get_deployment(session, agent_id, "mail-1"))
    with pytest.raises(DeploymentNotFound):
        await world.do(lambda session: read_route(session, RouteKey(agent_id=agent_id, deployment_id="mail-1")))


async def test_a_deployment_can_be_created_ahead_of_its_pod(world: World) -> None:
    """Pending until its pod registers, keeping the facts of its creation; created again, it is the same deployment."""
    await world.register(a_build())
    new: dict[str, Any] = {
        "id": "v1",
        "image": "bot:1",
        "registration_metadata": {"git": "a"},
        "sgp_deploy_id": "s",
        "helm_release_name": "h",
    }
    created = await world.create(**new)
    assert (created.status, created.docker_image, created.acp_url) == ("Pending", "bot:1", None)
    before = await world.contents()
    assert await world.create(**new) == created
    assert await world.contents() == before
    await world.arrive(deployment_id="v1", registration_metadata={"pod": 1})
    stored = await world.deployment("v1")
    assert (stored.status, stored.sgp_deploy_id, stored.helm_release_name) == ("Ready", "s", "h")
    assert stored.registration_metadata == {"git": "a", "deployment_id": "v1", "pod": 1}
    with pytest.raises(ImageConflict):
        await world.create(id="v1", image="bot:2")


async def test_creating_a_deployment_sets_a_missing_image(world: World) -> None:
    """G6: the first image named fills NULL, whether a pod or an operator names it."""
    await world.arrive(deployment_id="v1")
    assert (await world.create(id="v1", image="bot:1")).docker_image == "bot:1"
    assert await world.arrive(deployment_id="v1", docker_image="bot:2") == "Rejected"


async def test_a_deployment_s_id_cannot_be_taken_twice(world: World) -> None:
    """G5 and G7: refused as a registration is: another agent's id 409, a deleted one 410, for a deleted agent 410."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"))
    await world.arrive("mail-bot", deployment_id="mail-1")
    await world.delete("v2")
    with pytest.raises(DeploymentOfAnotherAgent):
        await world.create(id="mail-1")
    with pytest.raises(DeploymentDeletedError):
        await world.create(id="v2")
    await world.delete_agent()
    with pytest.raises(AgentDeletedError):
        await world.create(id="v3")
    await world.arrive(deployment_id="v4")
    with pytest.raises(DeploymentDeletedError):
        await world.create(id="v1")
    with pytest.raises(DeploymentOfAnotherAgent):
        await world.create("mail-bot", id="v1")


async def test_deleting_an_agent_ends_everything_at_once(world: World) -> None:
    """G16: production cleared, deployments expired, `demoted` then `agent.deleted`, none per deployment."""
    await world.register(incoming(deployment_id="v1"), incoming(deployment_id="v2"), incoming(deployment_id="v3"))
    await world.delete("v3")
    expired = (await world.deployment("v3")).expires_at
    before = len(await world.event_types())
    await world.delete_agent()
    assert (await world.event_types())[before:] == ["deployment.demoted", "agent.deleted"]
    agent = await world.agent()
    assert (agent.status, agent.production_deployment_id, agent.generation) == ("Deleted", None, 2)
    assert await world.causes() == [("first", "v1"), ("agent_deleted", None)]
    assert (await world.deployment("v3")).expires_at == expired
    assert None not in [(await world.deployment(version)).expires_at for version in ("v1", "v2")]


async def test_deleting_a_legacy_agent_is_announced_by_its_deletion(world: World) -> None:
    """G14 and G16: only the legacy address is gone, so `agent.deleted` carries the generation."""
    await world.arrive(acp_url="http://legacy")
    await world.delete_agent()
    assert await world.event_types() == ["agent.registered", "agent.deleted"]
    assert [(event.generation, event.payload["acp_url"]) for event in await world.events()][-1] == (2, None)


async def test_deleting_an_agent_that_nothing_served_is_no_generation(world: World) -> None:
    """G14: nothing served before, nothing serves after."""
    await world.register(a_build())
    await world.delete_agent()
    assert await world.event_types() == ["agent.registered", "agent.deleted"]
    assert await world.ledger() == []


async def test_a_second_deletion_changes_nothing(world: World) -> None:
    """G16: the second deletion has the same result and adds no event."""
    await world.arrive(deployment_id="v1")
    await world.delete_agent()
    before = await world.contents()
    assert (await world.delete_agent()).agent.status == "Deleted"
    assert await world.contents() == before


async def test_a_deleted_agent_s_name_is_free(world: World) -> None:
    """G16: a later registration creates a new agent with its own counters; the old ledger stays readable."""
    await world.arrive(deployment_id="v1")
    old = await world.agent_id()
    await world.delete_agent()
    assert await world.arrive(deployment_id="v2") == "Registered"
    agent = await world.agent()
    assert agent.id != old
    assert (agent.generation, await world.causes()) == (1, [("first", "v2")])
    rows = await world.do(lambda session: history.history(session, old, limit=10))
    assert [row.promotion.cause for row in rows] == ["agent_deleted", "first"]


async def test_a_message_published_before_the_deletion_is_stale_for_the_new_agent_too(world: World) -> None:
    """G16: the newest deletion of the name counts, even if a new agent has the name."""
    await world.arrive(deployment_id="v1")
    await world.delete_agent()
    await world.arrive(deployment_id="v2", registered_at=ago(-2))
    assert await world.arrive(deployment_id="v3", registered_at=ago(10)) == "Stale"
    assert await world.arrive(registered_at=ago(10)) == "Stale"
    assert await world.arrive(deployment_id="v3", registered_at=ago(-3)) == "Registered"


async def test_settings_change_alone(world: World) -> None:
    """G2: values that an operator does not name stay; a change of settings adds no event and no generation."""
    await world.arrive(deployment_id="v1", description="Mine.")
    before = await world.agent()
    events = await world.event_types()
    await world.change(auto_promote="always")
    await world.change(description="Ours.")
    await world.change()
    after = await world.agent()
    changed = {name for name in COLUMNS if getattr(before, name) != getattr(after, name)}
    assert changed == {"auto_promote", "description", "updated_at"}
    assert await world.event_types() == events
