"""Processes start in any order, and end in time even if their servers hang."""

import os
import signal

import aio_pika
import aiohttp
import pytest

from podium.servers import PrivateServer
from podium.servers.ports import free_ports
from tests.chaos.system import System, ended_within, freeze
from tests.support.broker import publish
from tests.support.factories import a_body
from tests.support.processes import api_at_once, environment, program
from tests.support.waiting import eventually, eventually_rows

DRAIN_SECONDS = 2.5
API_END_SECONDS = 10


async def test_everything_starts_while_both_servers_are_away(system: System) -> None:
    """Worker and API report which server is unavailable since when, and work once it is available."""
    await system.servers.settled()
    await system.servers.rabbitmq.stop()
    await system.servers.postgres.stop()
    async with (
        system.worker() as worker,
        api_at_once(system.settings, system.folder) as url,
        aiohttp.ClientSession() as web,
    ):
        for action in ("registrar.disconnected", "relay.disconnected", "drainer.disconnected"):
            await system.until_logged(action, server="RabbitMQ")
        async with web.get(f"{url}/health/ready") as ready:
            parts = (await ready.json())["parts"]
            assert (ready.status, parts["database"]["ok"], parts["broker"]["ok"]) == (503, False, False)
        await system.servers.rabbitmq.start()
        await system.until_logged("relay.disconnected", server="PostgreSQL")
        async with await aio_pika.connect(system.settings.amqp_url.get_secret_value()) as broker:
            await publish(broker, a_body("bot", deployment_id="v1"))
        await system.until_logged("registrar.database_away", server="PostgreSQL")
        await system.servers.postgres.start()
        await eventually_rows(system.sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL", 4)

        async def api_ready() -> bool:
            async with web.get(f"{url}/health/ready") as ready:
                return ready.status == 200

        await eventually(api_ready, "the API is ready")
        assert worker.code is None
    assert all(line["since"] for line in system.logged("relay.disconnected"))
    assert system.logged("relay.connected")


@pytest.mark.parametrize("hanging", ["postgres", "rabbitmq"])
async def test_a_worker_ends_in_time_while_a_server_hangs(system: System, hanging: str) -> None:
    """After SIGTERM during a batch, with a server that does not answer, the process ends within the drain timeout."""
    server: PrivateServer = getattr(system.servers, hanging)
    await system.servers.settled()
    async with await aio_pika.connect(system.settings.amqp_url.get_secret_value()) as broker:
        async with system.worker(PODIUM_DRAIN_TIMEOUT=str(DRAIN_SECONDS)) as worker:
            await system.until_logged("registrar.started")
            await system.until_logged("relay.started")
            for number in range(20):
                await publish(broker, a_body(f"bot-{number}", deployment_id=f"v-{number}"))
            freeze(server)
            os.kill(worker.pid, signal.SIGTERM)
            await ended_within(worker, DRAIN_SECONDS + 1)
        await system.servers.repair()
    async with system.worker():
        await eventually_rows(system.sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL", 80)


async def test_an_api_ends_in_time_while_its_database_hangs(system: System) -> None:
    """The API closes its connections, but does not wait for a server that does not answer."""
    env = environment(system.settings, PODIUM_PORT=str(port := free_ports(["api"])["api"]))
    async with program("podium api", env, system.folder / "api.log") as api, aiohttp.ClientSession() as web:

        async def read() -> bool:
            try:
                async with web.get(f"http://127.0.0.1:{port}/agents") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await eventually(read, "the API answers")
        freeze(system.servers.postgres)
        os.kill(api.pid, signal.SIGTERM)
        assert await ended_within(api, API_END_SECONDS) == 0


async def test_a_second_sigterm_ends_a_worker_at_once(system: System) -> None:
    """The second SIGTERM has its default action."""
    async with system.worker() as worker:
        await system.until_logged("relay.started")
        freeze(system.servers.postgres)
        os.kill(worker.pid, signal.SIGTERM)
        await system.until_logged("worker.stopping")
        os.kill(worker.pid, signal.SIGTERM)
        assert await ended_within(worker, 1) == -signal.SIGTERM
