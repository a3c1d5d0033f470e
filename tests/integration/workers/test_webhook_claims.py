"""Claims and results of deliveries: who comes first, and what changes a webhook and its positions beside them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.domain.identity import EVERYBODY
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from services.storage.models import Webhook
from services.webhooks import deliveries, registry
from services.webhooks.positions import hand_out
from services.webhooks.sender import Attempt
from tests.integration.workers.conftest import working
from tests.integration.workers.receiving import AMY, a_webhook, happen
from tests.support.receivers import running_receiver
from tests.support.waiting import eventually, eventually_rows, rows
from workers.runner import run_webhooks

HOUR = timedelta(hours=1)
ACCEPTED = Attempt("accepted", "", 0.1, 200)


@pytest_asyncio.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection as a worker's, in autocommit mode."""
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        yield connection


async def claimed(
    connection: AsyncConnection, *webhooks: Webhook, total: int = 4, retries: bool = False
) -> list[deliveries.Claim]:
    """What a worker with free slots for these webhooks claims."""
    free = {each.id: 4 for each in webhooks}
    return await deliveries.claim(connection, free, total=total, retries=retries, lease=HOUR)


async def waits_for_a_lock(sessions: Sessions) -> bool:
    """Whether a session of this database waits for a lock."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(await rows(sessions, waiting))


async def test_a_receiver_that_fails_comes_after_the_others(sessions: Sessions, connection: AsyncConnection) -> None:
    """G101: also for a worker that has just started and knows no receiver: hanging ones leave it the slots."""
    failing, fine = [await a_webhook(sessions, "https://receiver.example/") for _ in range(2)]
    await happen(sessions, "bot", "v1")
    await hand_out(connection)
    await connection.execute(text("UPDATE webhooks SET failing_since = now() WHERE id = :id"), {"id": failing.id})
    older = "UPDATE webhook_positions SET due_at = due_at - interval '1 h' WHERE webhook_id = :id"
    await connection.execute(text(older), {"id": failing.id})
    assert [each.webhook_id for each in await claimed(connection, failing, fine, total=1)] == [fine.id]
    assert [each.webhook_id for each in await claimed(connection, failing, fine, total=1)] == [failing.id]


async def test_no_delivery_begins_after_a_pause(sessions: Sessions, connection: AsyncConnection) -> None:
    """Even of a worker that saw the webhook active just before."""
    webhook = await a_webhook(sessions, "https://receiver.example/")
    await happen(sessions, "bot", "v1")
    await hand_out(connection)
    await in_transaction(sessions, lambda session: registry.pause_webhook(session, webhook.id, EVERYBODY, AMY))
    assert await claimed(connection, webhook) == []


async def test_a_result_beside_a_change_of_its_webhook(sessions: Sessions, connection: AsyncConnection) -> None:
    """Both lock the webhook before its positions, so neither ends in a deadlock."""
    webhook = await a_webhook(sessions, "https://receiver.example/")
    await happen(sessions, "bot", "v1")
    await hand_out(connection)
    (one,) = await claimed(connection, webhook)
    async with sessions() as change, change.begin():
        await change.execute(text("SELECT FROM webhooks WHERE id = :id FOR UPDATE"), {"id": webhook.id})
        accept = partial(deliveries.settle_accepted, claimed=one, attempt=ACCEPTED)
        result = asyncio.create_task(in_transaction(sessions, accept))
        await eventually(partial(waits_for_a_lock, sessions), "the result waits")
        await change.execute(text("SET LOCAL lock_timeout = '100ms'"))
        await change.execute(text("UPDATE webhook_positions SET due_at = now()"))
    assert (await result).stored


async def test_events_that_come_while_a_claim_has_none(sessions: Sessions, connection: AsyncConnection) -> None:
    """G100: the lock of a claim can show a position that is newer than the events that it saw: none is skipped."""
    webhook = await a_webhook(sessions, "https://receiver.example/")
    await happen(sessions, "bot", "v1")
    await hand_out(connection)
    await connection.execute(text("DELETE FROM outbox"))
    (empty,) = await claimed(connection, webhook)
    assert (empty.event_id, empty.sequence) == (None, 4)
    await happen(sessions, "bot", "v2")
    await hand_out(connection)
    settle = partial(deliveries.settle_removed, claimed=replace(empty, sequence=6))
    assert (await in_transaction(sessions, settle)).stored
    (next_,) = await claimed(connection, webhook)
    assert next_.sequence == 5
    await connection.execute(text("DELETE FROM outbox"))
    assert (await in_transaction(sessions, partial(deliveries.settle_removed, claimed=next_))).stored
    assert await rows(sessions, "SELECT 1 FROM webhook_positions") == []


@pytest.mark.parametrize("retries", [False, True])
async def test_the_plan_of_a_claim(sessions: Sessions, connection: AsyncConnection, *, retries: bool) -> None:
    """G101: first attempts are found without a look at the retries that are due, and the reverse."""
    webhook = await a_webhook(sessions, "https://receiver.example/")
    fill = (
        "INSERT INTO webhook_positions (webhook_id, agent_id, sequence, last_sequence, attempts, due_at) "
        "SELECT :id, gen_random_uuid(), 0, 1, :attempts, now() - interval '1 h' FROM generate_series(1, 5000)"
    )
    await connection.execute(text(fill), {"id": webhook.id, "attempts": int(not retries)})
    await connection.execute(text("ANALYZE webhook_positions"))
    parameters = {"webhooks": [webhook.id], "free": [4], "total": 4, "retries": retries, "lease": HOUR}
    explain = f"EXPLAIN (ANALYZE, COSTS false, TIMING false, SUMMARY false) {deliveries._CLAIM.text}"
    plan = "\n".join(await connection.scalars(text(explain), parameters))
    assert "Rows Removed by Filter" not in plan, plan


async def test_a_held_position_delays_no_other_webhook(
    quick: Settings, sessions: Sessions, connection: AsyncConnection
) -> None:
    """G101: events from before somebody took a position are handed out to other webhooks than its own."""
    await happen(sessions, "free", "v0")
    async with running_receiver() as one, running_receiver() as other:
        await a_webhook(sessions, one.url)
        await a_webhook(sessions, other.url, agent_name="free")
        await happen(sessions, "held", "v1")
        await hand_out(connection)
        await happen(sessions, "held", "v2")
        await happen(sessions, "free", "v1")
        async with sessions() as holder, holder.begin():
            await holder.execute(text("SELECT FROM webhook_positions FOR UPDATE"))
            async with working(run_webhooks, quick):
                await other.until("free", 6, seconds=5)
                assert one.seen == []
        async with working(run_webhooks, quick):
            await one.until("held", 6)
    assert one.sequences("held") == [1, 2, 3, 4, 5, 6]


async def test_an_agent_that_somebody_holds_while_its_webhook_is_disabled(quick: Settings, sessions: Sessions) -> None:
    """G103: the webhook is disabled once the agent is free, without another delivery."""
    async with running_receiver(lambda _: 410) as gone, working(run_webhooks, quick):
        await a_webhook(sessions, gone.url)
        await happen(sessions, "bot", "v1")
        held = gone.hold("bot")
        await gone.until_seen(1)
        async with sessions() as holder, holder.begin():
            await holder.execute(text("SELECT FROM agents FOR UPDATE"))
            held.set()
            await eventually(partial(waits_for_a_lock, sessions), "the disabling waits")

            async def has_given_up() -> bool:
                return not await waits_for_a_lock(sessions)

            await eventually(has_given_up, "its first try ends")
        await eventually_rows(sessions, "SELECT 1 FROM webhooks WHERE status = 'disabled'")
        assert len(gone.seen) == 1
