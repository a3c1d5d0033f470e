"""Processes start in any order, and end in time even if their servers hang."""

import os
import signal

import aio_pika
import aiohttp
import pytest

from podium.servers import PrivateServer
from podium.servers.ports import free_ports
from tests.chaos.ground import Field, ended_within, freeze
from tests.support.broker import publish
from tests.support.factories import a_body
from tests.support.processes import api_at_once, environment, program
from tests.support.waiting import eventually, eventually_rows

DRAIN_SECONDS = 2.5
API_END_SECONDS = 10


async def test_everything_starts_while_both_servers_are_away(field: Field) -> None:
    """Worker and API report which server is unavailable since when, and work once it is available."""
    await field.ground.settled()
    await field.ground.rabbitmq.stop()
    await field.ground.postgres.stop()
    async with (
        field.worker() as worker,
        api_at_once(field.settings, field.folder) as url,
        aiohttp.ClientSession() as web,
    ):
        for action in ("registrar.disconnected", "relay.disconnected", "drainer.disconnected"):
            await field.until_logged(action, server="RabbitMQ")
        async with web.get(f"{url}/health/ready") as ready:
            parts = (await ready.json())["parts"]
            assert (ready.status, parts["database"]["ok"], parts["broker"]["ok"]) == (503, False, False)
        await field.ground.rabbitmq.start()
        await field.until_logged("relay.disconnected", server="PostgreSQL")
        async with await aio_pika.connect(field.settings.amqp_url.get_secret_value()) as broker:
            await publish(broker, a_body("bot", deployment_id="v1"))
        await field.until_logged("registrar.database_away", server="PostgreSQL")
        await field.ground.postgres.start()
        await eventually_rows(field.sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL", 4)

        async def api_ready() -> bool:
            async with web.get(f"{url}/health/ready") as ready:
                return ready.status == 200

        await eventually(api_ready, "the API is ready")
        assert worker.code is None
    assert all(line["since"] for line in field.logged("relay.disconnected"))
    assert field.logged("relay.connected")


@pytest.mark.parametrize("hanging", ["postgres", "rabbitmq"])
async def test_a_worker_ends_in_time_while_a_server_hangs(field: Field, hanging: str) -> None:
    """After SIGTERM during a batch, with a server that does not answer, the process ends within the drain timeout."""
    server: PrivateServer = getattr(field.ground, hanging)
    await field.ground.settled()
    async with await aio_pika.connect(field.settings.amqp_url.get_secret_value()) as broker:
        async with field.worker(PODIUM_DRAIN_TIMEOUT=str(DRAIN_SECONDS)) as worker:
            await field.until_logged("registrar.started")
            await field.until_logged("relay.started")
            for number in range(20):
                await publish(broker, a_body(f"bot-{number}", deployment_id=f"v-{number}"))
            freeze(server)
            os.kill(worker.pid, signal.SIGTERM)
            await ended_within(worker, DRAIN_SECONDS + 1)
        await field.ground.repair()
    async with field.worker():
        await eventually_rows(field.sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL", 80)


async def test_an_api_ends_in_time_while_its_database_hangs(field: Field) -> None:
    """The API closes its connections, but does not wait for a server that does not answer."""
    env = environment(field.settings, PODIUM_PORT=str(port := free_ports(["api"])["api"]))
    async with program("podium api", env, field.folder / "api.log") as api, aiohttp.ClientSession() as web:

        async def read() -> bool:
            try:
                async with web.get(f"http://127.0.0.1:{port}/agents") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await eventually(read, "the API answers")
        freeze(field.ground.postgres)
        os.kill(api.pid, signal.SIGTERM)
        assert await ended_within(api, API_END_SECONDS) == 0


async def test_a_second_sigterm_ends_a_worker_at_once(field: Field) -> None:
    """The second SIGTERM has its default action."""
    async with field.worker() as worker:
        await field.until_logged("relay.started")
        freeze(field.ground.postgres)
        os.kill(worker.pid, signal.SIGTERM)
        await field.until_logged("worker.stopping")
        os.kill(worker.pid, signal.SIGTERM)
        assert await ended_within(worker, 1) == -signal.SIGTERM
