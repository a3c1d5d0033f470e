"""Retention keeps the tables bounded, also while other transactions run."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractConnection
from pydantic_core import to_json
from sqlalchemy import text
from structlog.testing import capture_logs

from services.domain.state import AgentSnapshot
from services.errors import DeploymentDeletedError, NothingToRollBackTo
from services.registration.batch import register_batch
from services.retention.tasks import RetentionTask, sweep
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.integration.services.world import World, settled
from tests.integration.workers.conftest import working
from tests.support.broker import publish
from tests.support.factories import a_body, incoming
from tests.support.invariants import assert_invariants
from tests.support.waiting import eventually, rows
from workers.janitor.sweeper import Sweeper
from workers.runner import run_janitor

FOREVER = timedelta.max
A_MOMENT = timedelta(seconds=0.5)
SIZES = """
    SELECT (SELECT count(*) FROM outbox) AS outbox, (SELECT count(*) FROM registrations) AS registrations,
        (SELECT count(*) FROM parked) AS parked
"""
AGENTS = [f"bot-{number}" for number in range(10)]
VERSIONS = 200


def sweeping(settings: Settings, **changes: object) -> Settings:
    """Settings of a frequent sweep that removes only what the test names."""
    nothing = dict.fromkeys(("deleted_retention", "outbox_retention", "inbox_retention", "parked_retention"), FOREVER)
    eager = {"sweep_interval": timedelta(seconds=0.1), **nothing, **changes}
    return settings.model_copy(update=eager)


async def one_pass(settings: Settings, sessions: Sessions) -> Counter[RetentionTask]:
    """Run one pass of a new sweeper; returns how many rows each task removed."""
    return await Sweeper(settings, sessions).sweep(asyncio.Event())


@pytest.mark.usefixtures("registrar", "relay")
async def test_the_tables_stay_bounded_while_announcements_flow(
    broker: AbstractConnection, settings: Settings, sessions: Sessions
) -> None:
    """With a retention of half a second each table holds a third of the messages at most, and is empty at the end."""
    moments = dict.fromkeys(("outbox_retention", "inbox_retention", "parked_retention"), A_MOMENT)
    most: Counter[str] = Counter()
    passed = 0
    async with working(run_janitor, sweeping(settings, **moments, sweep_batch_size=100)):
        async with asyncio.timeout(60):
            while passed < 100 or any(most[name] > passed / 3 for name in most):
                await asyncio.gather(
                    publish(broker, a_body(deployment_id=f"v{passed}")),
                    publish(broker, to_json({"name": "bot", "message_id": str(uuid4())}), key="agent.bot"),
                )
                passed += 1
                [sizes] = await rows(sessions, SIZES)
                most |= Counter(sizes._asdict())

        async def all_empty() -> bool:
            return (await rows(sessions, SIZES)) == [(0, 0, 0)]

        await eventually(all_empty, "empty tables")
    [marks] = await rows(
        sessions, "SELECT event_seq, sequence FROM agents JOIN outbox_low_water ON agent_id = agents.id"
    )
    assert marks.event_seq == marks.sequence > 2 * passed


async def test_thousands_are_purged_beside_promotes_and_registrations(settings: Settings, sessions: Sessions) -> None:
    """No deadlock occurs, no operation fails unexpectedly, and all invariants hold afterwards."""
    world = World(sessions)
    for name in AGENTS:
        await world.register(*[incoming(name, deployment_id=f"{name}.{number}") for number in range(VERSIONS)])
    eager = sweeping(
        settings,
        preview_max_age=timedelta(milliseconds=1),
        deleted_retention=timedelta(0),
        production_versions_kept=2,
        sweep_batch_size=100,
    )
    swept = asyncio.Event()

    async def busy(change: Callable[[str], Coroutine[Any, Any, Any]]) -> Counter[str]:
        """Change random agents until the sweep is done; returns how often each outcome occurred."""
        outcomes: Counter[str] = Counter()
        while not swept.is_set():
            outcomes[type(await settled(change(random.choice(AGENTS)))).__name__] += 1  # noqa: S311
        return outcomes

    def any_version(name: str) -> str:
        return f"{name}.{random.randrange(VERSIONS)}"  # noqa: S311

    async def all_sweeps() -> Counter[RetentionTask]:
        try:
            two = await asyncio.gather(one_pass(eager, sessions), one_pass(eager, sessions))
            return two[0] + two[1] + await one_pass(eager, sessions)
        finally:
            swept.set()

    with capture_logs() as logs:
        removed, *outcomes = await asyncio.gather(
            all_sweeps(),
            busy(lambda name: world.promote(any_version(name), name)),
            busy(lambda name: world.promote(any_version(name), name)),
            busy(lambda name: world.roll_back(name=name)),
            busy(lambda name: world.arrive(name, deployment_id=any_version(name))),
        )
    assert not [entry for entry in logs if "deadlock" in entry.get("cause", "")]
    refusals = {DeploymentDeletedError.__name__, NothingToRollBackTo.__name__}
    assert sum(outcomes, Counter()).keys() <= {AgentSnapshot.__name__, "str"} | refusals
    assert removed[RetentionTask.DELETED_DEPLOYMENTS] > len(AGENTS) * VERSIONS / 2
    await world.do(assert_invariants)


async def test_a_task_that_another_process_runs_is_skipped(settings: Settings, sessions: Sessions) -> None:
    """Two processes never run the same task at once, and neither waits."""
    world = World(sessions)
    await world.register(*[incoming(deployment_id=f"v{number}") for number in range(10)])
    mine = sweeping(settings, inbox_retention=timedelta(0))
    async with world.uncommitted() as other:
        assert (await sweep(other, RetentionTask.DECIDED_ANNOUNCEMENTS, mine)).rows == 10
        assert not (await one_pass(mine, sessions)).total()
        await other.rollback()
        assert (await one_pass(mine, sessions)) == {
            task: 10 * (task is RetentionTask.DECIDED_ANNOUNCEMENTS) for task in RetentionTask
        }


async def test_nothing_is_removed_before_its_time(settings: Settings, sessions: Sessions) -> None:
    """With the default retention, recent rows stay; with an unlimited retention, all rows stay."""
    world = World(sessions)
    await world.two_versions()
    await world.delete("support-bot.v2")
    await world.do(lambda session: session.execute(text("UPDATE outbox SET published_at = now()")))
    before = await world.contents()
    for each in (settings, sweeping(settings)):
        assert not (await one_pass(each, sessions)).total()
    assert await world.contents() == before


async def test_other_tasks_run_after_one_has_failed(settings: Settings, sessions: Sessions) -> None:
    """A broken table does not stop the removal of rows from other tables."""
    await World(sessions).two_versions()
    await in_transaction(sessions, lambda session: session.execute(text("ALTER TABLE outbox RENAME TO elsewhere")))
    moment = sweeping(settings, outbox_retention=timedelta(0), inbox_retention=timedelta(0))
    with pytest.raises(Exception, match="outbox"):
        await one_pass(moment, sessions)
    assert await rows(sessions, "SELECT 1 FROM registrations") == []


async def test_a_pass_logs_what_it_removed(settings: Settings, sessions: Sessions) -> None:
    """A pass logs one line with a count for each task, and no line if it removed nothing."""
    await World(sessions).two_versions()
    moment = sweeping(settings, inbox_retention=timedelta(0), sweep_batch_size=1)
    with capture_logs() as logs:
        await one_pass(moment, sessions)
        await one_pass(moment, sessions)
    [line] = [entry for entry in logs if entry.get("action") == "sweep.removed"]
    assert (line["decided_announcements"], line["published_events"], line["more"]) == (2, 0, False)


@pytest.mark.usefixtures("broker")
async def test_late_events_among_the_oldest_do_not_keep_the_others(settings: Settings, sessions: Sessions) -> None:
    """G19: one pass removes all events past their retention, also behind more late ones than a step checks."""
    for name in ("late", "bot"):
        for version in range(10):
            message = incoming(name, deployment_id=f"{name}-{version}")
            await in_transaction(sessions, partial(register_batch, batch=[message]))
    async with sessions.begin() as session:
        old = "clock_timestamp() - interval '8 days'"
        published = f"CASE agent_name WHEN 'late' THEN clock_timestamp() ELSE {old} END"
        await session.execute(text(f"UPDATE outbox SET created_at = {old}, published_at = {published}"))
    eager = sweeping(settings, outbox_retention=timedelta(days=7), sweep_batch_size=5)
    [before] = await rows(sessions, "SELECT count(*) AS late FROM outbox WHERE agent_name = 'late'")
    removed = await one_pass(eager, sessions)
    left = await rows(sessions, "SELECT agent_name, count(*) AS number FROM outbox GROUP BY agent_name")
    assert [(row.agent_name, row.number) for row in left] == [("late", before.late)]
    assert removed[RetentionTask.PUBLISHED_EVENTS] == before.late
