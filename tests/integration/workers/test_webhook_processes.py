"""Webhooks while the processes that deliver them are killed, frozen, or lose the database."""

import os
import signal
from datetime import timedelta
from pathlib import Path

from sqlalchemy import text

from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from tests.integration.workers.conftest import working
from tests.integration.workers.receiving import a_webhook, happen, nothing_waits
from tests.support.processes import worker_process
from tests.support.receivers import running_receiver
from tests.support.waiting import eventually_rows, rows
from workers.runner import run_webhooks

# As the settings `quick`.
QUICK = {
    "PODIUM_WEBHOOK_DIAL_NETWORKS": "127.0.0.0/8",
    "PODIUM_WEBHOOK_TIMEOUT": "1",
    "PODIUM_WEBHOOK_FIRST_RETRY": "0.05",
    "PODIUM_WEBHOOK_LONGEST_RETRY": "0.2",
    "PODIUM_WEBHOOK_POLL": "0.05",
}
TERMINATE = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = 'podium-webhooks'"
)


async def test_a_worker_that_is_killed_between_the_delivery_and_its_result(
    settings: Settings, quick: Settings, sessions: Sessions, tmp_path: Path
) -> None:
    """G100: the event is sent again under the same id; none is lost, and each agent's order stays."""
    async with running_receiver() as receiver:
        await a_webhook(sessions, receiver.url)
        held = receiver.hold("bot")
        async with worker_process(settings, tmp_path, "webhooks", **QUICK) as worker:
            await happen(sessions, "bot", "v1", "v2")
            await happen(sessions, "other", "v1")
            (first,) = await receiver.until_seen(1, "bot")
            await worker.kill()
        held.set()
        async with working(run_webhooks, quick):
            await receiver.until("bot", 6)
            await receiver.until("other", 4)
    again = next(each for each in receiver.seen if each.agent == "bot" and each is not first)
    assert (again.body, again.headers["webhook-id"]) == (first.body, first.headers["webhook-id"])
    assert list(dict.fromkeys(receiver.sequences("bot"))) == [1, 2, 3, 4, 5, 6]
    assert list(dict.fromkeys(receiver.sequences("other"))) == [1, 2, 3, 4]


async def test_a_worker_that_is_frozen_while_it_delivers(
    settings: Settings, quick: Settings, sessions: Sessions, tmp_path: Path
) -> None:
    """G100: another one goes on after the claim has ended, and what the frozen one says later changes nothing."""
    async with running_receiver() as receiver:
        await a_webhook(sessions, receiver.url)
        held = receiver.hold("bot")
        async with worker_process(settings, tmp_path, "webhooks", **QUICK) as worker:
            await happen(sessions, "bot", "v1")
            await receiver.until_seen(1, "bot")
            os.kill(worker.pid, signal.SIGSTOP)
            try:
                async with working(run_webhooks, quick):
                    await receiver.until_seen(2, "bot")
                    held.set()
                    await receiver.until("bot", 4)
                    await nothing_waits(sessions)
            finally:
                os.kill(worker.pid, signal.SIGCONT)
            await happen(sessions, "bot", "v2")
            await receiver.until("bot", 6)
    assert list(dict.fromkeys(receiver.sequences("bot"))) == [1, 2, 3, 4, 5, 6]
    outcomes = await rows(sessions, "SELECT sequence FROM webhook_deliveries WHERE outcome = 'failed'")
    assert outcomes == []


async def test_a_worker_that_loses_the_database(quick: Settings, sessions: Sessions) -> None:
    """G100: it goes on when the database is back; nothing is lost, and nothing is told about other sessions."""
    patient = quick.model_copy(update={"webhook_timeout": timedelta(seconds=2)})
    async with running_receiver() as receiver, working(run_webhooks, patient):
        await a_webhook(sessions, receiver.url)
        for version in ("v1", "v2", "v3"):
            await happen(sessions, "bot", version)
            await receiver.until_seen(1)
            await in_transaction(sessions, lambda session: session.execute(TERMINATE))
        await receiver.until("bot", 8)
        await nothing_waits(sessions)
        assert await eventually_rows(sessions, "SELECT 1 FROM webhook_deliveries")
    assert list(dict.fromkeys(receiver.sequences("bot"))) == list(range(1, 9))
