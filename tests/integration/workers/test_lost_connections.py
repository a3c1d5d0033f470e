"""A closed connection cancels the tasks that wait on it; a worker does not take that for its own cancellation."""

import asyncio
from collections.abc import Callable
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection
from pydantic import SecretStr
from structlog.testing import capture_logs
from yarl import URL

from contracts import topology
from services.cancellation import lost_as
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.services.proxy import Proxy
from tests.integration.workers.conftest import Work, working
from tests.support.broker import publish
from tests.support.factories import a_body
from tests.support.waiting import eventually, eventually_rows
from workers import runner
from workers.amqp.delivery import Delivery
from workers.amqp.topology import declare
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


async def announce(broker: AbstractConnection, queue: str, version: str) -> None:
    """One more message in the queue."""
    if queue == topology.REGISTRATIONS_QUEUE:
        await publish(broker, a_body("bot", deployment_id=version))
    else:
        await (await broker.channel()).default_exchange.publish(aio_pika.Message(version.encode()), queue)


CONSUMERS = pytest.mark.parametrize(
    ("work", "queue", "table"),
    [
        (run_registrar, topology.REGISTRATIONS_QUEUE, "registrations"),
        (run_drainer, topology.PARKED_QUEUE, "parked"),
    ],
)


@CONSUMERS
async def test_an_idle_consumer_notices_that_its_connection_is_lost(
    broker: AbstractConnection, settings: Settings, sessions: Sessions, work: Work, queue: str, table: str
) -> None:
    """It opens another one, and continues."""
    url = URL(settings.amqp_url.get_secret_value())
    proxy = Proxy("127.0.0.1", url.port or 0)
    await proxy.start()
    through = settings.model_copy(update={"amqp_url": SecretStr(str(url.with_port(proxy.port)))})
    async with working(work, through):
        await announce(broker, queue, "v1")
        await eventually_rows(sessions, f"SELECT 1 FROM {table}", 1)
        await proxy.stop()
        await proxy.start()
        await announce(broker, queue, "v2")
        await eventually_rows(sessions, f"SELECT 1 FROM {table}", 2)
    await proxy.stop()


@CONSUMERS
async def test_a_consumer_whose_queue_was_deleted_consumes_from_the_next_one(
    broker: AbstractConnection, settings: Settings, sessions: Sessions, work: Work, queue: str, table: str
) -> None:
    """The broker cancels the consumer then, and closes nothing."""
    with capture_logs() as logs:
        async with working(work, settings):
            await announce(broker, queue, "v1")
            await eventually_rows(sessions, f"SELECT 1 FROM {table}", 1)
            await (await broker.channel()).queue_delete(queue)

            async def noticed() -> bool:
                return any(line["action"].endswith(".disconnected") for line in logs)

            # RabbitMQ says nothing if there is another queue of this name at once.
            await eventually(noticed, "the worker notices")
            await declare(settings)
            await announce(broker, queue, "v2")
            await eventually_rows(sessions, f"SELECT 1 FROM {table}", 2)


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
