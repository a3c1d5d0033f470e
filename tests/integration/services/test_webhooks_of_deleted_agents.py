"""Webhooks of deleted agents do not stay for ever."""

from datetime import timedelta

from services.domain.caller import Caller
from services.domain.identity import EVERYBODY
from services.retention.tasks import RetentionTask, sweep
from services.settings import Settings
from services.webhooks.registry import NewWebhook, create_webhook
from tests.integration.services.world import World
from tests.support.waiting import rows

AMY = Caller(actor="amy")


async def swept(world: World, settings: Settings, retention: timedelta) -> int:
    """How many webhooks one step removes, of which each counts as a hundred rows."""
    steps = settings.model_copy(update={"sweep_batch_size": 200, "deleted_retention": retention})
    task = RetentionTask.WEBHOOKS_OF_DELETED_AGENTS
    return (await world.do(lambda session: sweep(session, task, steps))).rows


async def test_webhooks_of_deleted_agents_are_removed_after_the_retention(world: World, settings: Settings) -> None:
    """In steps; those of living agents and of all agents stay."""
    for name in ("kept", "gone"):
        await world.arrive(name)
    for of in ("kept", "gone", "gone", "gone", None):
        new = NewWebhook(url="http://127.0.0.1:9/", agent_name=of)
        await world.do(lambda session, new=new: create_webhook(session, new, EVERYBODY, AMY))  # type: ignore[misc]
    assert await swept(world, settings, timedelta(0)) == 0
    await world.delete_agent("gone")
    assert await swept(world, settings, timedelta(hours=1)) == 0
    assert [await swept(world, settings, timedelta(0)) for _ in range(3)] == [2, 1, 0]
    left = await rows(world.sessions, "SELECT agent_name FROM webhooks ORDER BY id")
    assert {row.agent_name for row in left} == {"kept", None}
