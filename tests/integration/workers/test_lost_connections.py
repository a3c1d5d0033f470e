"""A closed connection cancels the tasks that wait on it; a worker does not take that for its own cancellation."""

import asyncio
from collections.abc import Callable
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection

from contracts import topology
from services.cancellation import lost_as
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.workers.conftest import Work, working
from tests.support.broker import publish
from tests.support.factories import a_body
from tests.support.waiting import eventually_rows
from workers import runner
from workers.amqp.delivery import Delivery
from workers.runner import WorkerLost, WorkerName, run_drainer, run_registrar, run_relay, run_workers


def cancelled_once(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, whose first call raises `CancelledError`, as when the client closes its connection."""
    calls = 0

    async def wrapped(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return await method(*arguments, **more)

    return wrapped


@pytest.mark.parametrize(
    ("work", "where", "method", "waiting"),
    [
        (run_registrar, Delivery, "acknowledge", "registrations"),
        (run_drainer, Delivery, "acknowledge", "parked"),
        (run_relay, aio_pika.Exchange, "publish", "outbox"),
        (run_relay, aio_pika.Channel, "get_exchange", "outbox"),
    ],
)
async def test_a_worker_goes_on(
    broker: AbstractConnection,
    settings: Settings,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    work: Work,
    where: type,
    method: str,
    waiting: str,
) -> None:
    """It reconnects and continues its work."""
    await publish(broker, a_body("bot", deployment_id="v1"))
    channel = await broker.channel()
    await channel.default_exchange.publish(aio_pika.Message(b"dead"), topology.PARKED_QUEUE)
    if waiting == "outbox":
        async with working(run_registrar, settings):
            await eventually_rows(sessions, "SELECT 1 FROM outbox", 4)
    monkeypatch.setattr(where, method, cancelled_once(getattr(where, method)))
    async with working(work, settings):
        if waiting == "outbox":
            await eventually_rows(sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL", 4)
        await publish(broker, a_body("bot", deployment_id="v2"))
        await channel.default_exchange.publish(aio_pika.Message(b"dead too"), topology.PARKED_QUEUE)
        if waiting != "outbox":
            await eventually_rows(sessions, f"SELECT 1 FROM {waiting}", 2)


async def test_a_real_cancellation_ends_the_task() -> None:
    """A cancellation counts as real if this task itself was cancelled."""

    async def waits() -> None:
        with lost_as(ConnectionError()):
            await asyncio.Event().wait()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_worker_that_ends_by_itself_ends_the_process(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process does not continue without one of its workers, so that its supervisor restarts it."""

    async def ends(*_: object, **_more: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(runner, "run_relay", ends)
    with pytest.raises(ExceptionGroup) as failed:
        await run_workers(settings, [WorkerName.RELAY, WorkerName.DRAINER])
    assert failed.group_contains(WorkerLost)
