"""Retention: old previews are deleted and deleted versions are purged, but not what serves or may serve again."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.state import AgentState
from services.errors import DeploymentDeletedError
from services.retention.versions import START, StepLimits, TaskStep, delete_old_previews, purge_deleted
from services.routing.draining import finish_draining
from services.routing.routes import RouteKey
from services.storage.store import lock_unclaimed
from tests.integration.services.world import NAME, World, read_route
from tests.support.factories import ago, incoming, over_http

DAY = 24 * 3600
TOMBSTONE = ("id", "agent_id", "docker_image", "status", "created_at", "first_registered_at", "ready_at", "expires_at")
FORGOTTEN = ("registration_metadata", "acp_url", "status_reason", "sgp_deploy_id", "helm_release_name")

_CREATED = text("UPDATE deployments SET created_at = clock_timestamp() - make_interval(days => :days) WHERE id = :id")


def limits(days: float = 0, *, keep: int = 20, rows: int = 100) -> StepLimits:
    """The limits of a step for versions older than this many days."""
    return StepLimits(before=datetime.now(UTC) - timedelta(days=days), keep=keep, rows=rows)


async def delete_old(world: World, at_most: StepLimits) -> int:
    """The number of previews that a step deleted."""
    return (await world.do(lambda session: delete_old_previews(session, at_most))).rows


async def purge(world: World, at_most: StepLimits) -> int:
    """The number of versions that a step purged."""
    return (await world.do(lambda session: purge_deleted(session, at_most))).rows


async def aged(world: World, deployment_id: str, days: float) -> None:
    """A version that was created and announced this many days ago."""
    await world.arrive(deployment_id=deployment_id, registered_at=ago(days * DAY))
    await world.do(lambda session: session.execute(_CREATED, {"id": deployment_id, "days": days}))


async def in_turn(world: World, *deployment_ids: str) -> None:
    """Put these versions into production, one after the other."""
    for deployment_id in deployment_ids:
        await world.arrive(deployment_id=deployment_id)
        await world.promote(deployment_id)


async def deletions(world: World) -> dict[str, bool]:
    """All versions, and whether each one is deleted."""
    return {each.id: each.expires_at is not None for each in await world.deployments()}


async def test_an_old_preview_is_deleted_as_by_an_operator(world: World) -> None:
    """The same columns and the same event; a production of the same age stays."""
    for deployment_id in ("v1", "by-hand", "by-age"):
        await aged(world, deployment_id, 10)
    await world.delete("by-hand")
    assert await delete_old(world, limits(7)) == 1
    assert await deletions(world) == {"v1": False, "by-hand": True, "by-age": True}
    by_hand, by_age = (await world.events())[-2:]
    assert (by_age.type, by_age.subject) == (by_hand.type, "by-age")
    assert by_age.payload.keys() == by_hand.payload.keys()
    deleted = await world.deployment("by-age")
    assert deleted.expires_at is not None
    assert datetime.fromisoformat(str(by_age.payload["expires_at"])) == deleted.expires_at
    assert await delete_old(world, limits(7)) == 0


async def test_a_preview_is_as_old_as_its_last_announcement(world: World) -> None:
    """The last announcement counts; if the pod's clock is behind, the creation of the row counts."""
    await world.arrive(deployment_id="v1")
    await aged(world, "announced", 10)
    await world.arrive(deployment_id="announced", registered_at=ago(1 * DAY))
    await world.arrive(deployment_id="clock-behind", registered_at=ago(100 * DAY))
    await world.create(id="pending")
    await world.create(id="never-came")
    await world.do(lambda session: session.execute(_CREATED, {"id": "never-came", "days": 10}))
    assert await delete_old(world, limits(7)) == 1
    assert [each for each, deleted in (await deletions(world)).items() if deleted] == ["never-came"]


async def test_the_last_versions_in_production_are_not_removed(world: World) -> None:
    """Neither by their age nor after their deletion; a rollback still finds them."""
    await in_turn(world, "v1", "v2", "v3", "v4")
    await world.do(finish_draining)
    await world.arrive(deployment_id="never")
    assert await delete_old(world, limits(keep=3)) == 2
    assert [each for each, deleted in (await deletions(world)).items() if deleted] == ["never", "v1"]
    await world.roll_back()
    assert (await world.agent()).production_deployment_id == "v3"
    await world.delete("v2")
    assert await purge(world, limits(keep=3)) == 2
    assert [each.id for each in await world.deployments() if each.purged_at] == ["never", "v1"]
    assert await purge(world, limits(keep=2)) == 1
    assert [each.id for each in await world.deployments() if each.purged_at] == ["never", "v1", "v2"]


async def test_production_is_never_removed(world: World) -> None:
    """Even if there is no other version."""
    await in_turn(world, "v1", "v2")
    await world.do(finish_draining)
    assert await delete_old(world, limits(keep=0)) == 1
    assert await purge(world, limits(keep=0)) == 1
    assert await deletions(world) == {"v1": True, "v2": False}
    assert (await world.agent()).production_deployment_id == "v2"


async def test_a_purge_leaves_a_tombstone(world: World) -> None:
    """Id, agent, image, status and times stay, the rest is removed, with one event; the ledger has its own copy."""
    await world.arrive(deployment_id="v1")
    facts: dict[str, Any] = {"docker_image": "bot:2", "registration_metadata": {"git": "abc"}, "rpc_path": "/rpc"}
    await world.arrive(deployment_id="v2", **facts)
    await in_turn(world, "v2", "v1")
    await world.delete("v2")
    before, ledger = await world.deployment("v2"), await world.ledger()
    assert await purge(world, limits(days=1, keep=0)) == 0
    assert await purge(world, limits(keep=0)) == 1
    after = await world.deployment("v2")
    assert {name: getattr(after, name) for name in TOMBSTONE} == {name: getattr(before, name) for name in TOMBSTONE}
    assert [getattr(after, name) for name in FORGOTTEN] == [None] * len(FORGOTTEN)
    assert after.rpc_path == "/api"
    assert (await world.event_types())[-1] == "deployment.purged"
    assert [(row.generation, row.to_acp_url) for row in await world.ledger()] == [
        (row.generation, row.to_acp_url) for row in ledger
    ]
    assert await purge(world, limits(keep=0)) == 0


@pytest.mark.parametrize("image", [None, "bot:2", "another:1"])
async def test_a_purged_id_stays_taken(world: World, image: str | None) -> None:
    """G7: a registration under its id is refused as deleted, with the same image, another or none."""
    await in_turn(world, "v2", "v1")
    await world.arrive(deployment_id="v3", docker_image="bot:2")
    for deployment_id in ("v2", "v3"):
        await world.delete(deployment_id)
    assert await purge(world, limits(keep=0)) == 2
    for message in (incoming, over_http):
        (decided,) = await world.decide(message(deployment_id="v3", docker_image=image))
        assert isinstance(decided.outcome.error, DeploymentDeletedError)  # type: ignore[union-attr]
    agent_id = await world.agent_id()
    for refused in (
        lambda: world.promote("v2"),
        lambda: world.roll_back(to="v2"),
        lambda: world.create(id="v3", image=image or "bot:2"),
        lambda: world.do(lambda session: read_route(session, RouteKey(agent_id=agent_id, deployment_id="v2"))),
    ):
        with pytest.raises(DeploymentDeletedError):
            await refused()
    await world.delete("v3")
    assert (await world.event_types())[-2:] == ["deployment.purged", "deployment.purged"]


async def test_all_of_a_deleted_agent_is_purged(world: World) -> None:
    """No rollback needs its versions any more; its name and its versions' ids have the same effect as before."""
    await in_turn(world, "v1", "v2")
    await world.delete_agent()
    assert await purge(world, limits()) == 2
    assert (await world.event_types())[-3:] == ["agent.deleted", "deployment.purged", "deployment.purged"]
    assert await world.arrive(deployment_id="v2") == "Rejected"
    assert await world.arrive(deployment_id="v3") == "Registered"
    assert (await world.deployment("v3")).is_production


async def test_each_step_continues_after_the_last_one(world: World) -> None:
    """A step handles a limited number of rows; versions that must stay do not block those after them."""
    await in_turn(world, "v1", "v2", "v3")
    for deployment_id in ("v1", "v2"):
        await world.delete(deployment_id)
    for number in range(5):
        await world.arrive(deployment_id=f"preview-{number}")
        await world.delete(f"preview-{number}")
    changed, step = [], TaskStep(0, START)
    while step.cursor is not None:
        cursor = step.cursor
        step = await world.do(lambda session, cursor=cursor: purge_deleted(session, limits(rows=2), cursor))  # type: ignore[misc]
        changed.append(step.rows)
    assert changed == [0, 2, 2, 1]


async def test_a_locked_agent_is_skipped(world: World) -> None:
    """The step does not wait for it and handles the others; the next pass handles it."""
    for name in (NAME, "other"):
        await world.two_versions(name)
        await world.delete(f"{name}.v2", name)
    async with world.uncommitted() as busy:
        await busy.execute(text("SELECT FROM agents WHERE name = 'other' FOR NO KEY UPDATE"))
        assert await purge(world, limits()) == 1
    assert await purge(world, limits()) == 1


async def test_a_version_promoted_during_a_step_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conditions are checked again under the agent's lock."""
    await world.two_versions()

    async def promote_first(session: AsyncSession, agent_ids: Iterable[UUID]) -> dict[UUID, AgentState]:
        await world.promote(f"{NAME}.v2")
        return await lock_unclaimed(session, agent_ids)

    monkeypatch.setattr("services.retention.versions.lock_unclaimed", promote_first)
    assert await delete_old(world, limits(keep=0)) == 0
    assert await deletions(world) == {f"{NAME}.v1": False, f"{NAME}.v2": False}
