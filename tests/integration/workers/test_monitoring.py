"""The monitoring listener of worker processes, seen by an orchestrator and by Prometheus."""

import math
from pathlib import Path

import aiohttp
import pytest
from aio_pika.abc import AbstractConnection
from prometheus_client.parser import text_string_to_metric_families

from contracts.topology import REGISTRATIONS_QUEUE
from podium.servers.ports import free_ports
from services.settings import Settings
from services.storage.database import Sessions
from tests.support.broker import publish
from tests.support.factories import a_body
from tests.support.processes import worker_process
from tests.support.waiting import eventually, eventually_rows

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def answer(port: int, path: str) -> tuple[int, str]:
    """Status and body; status 0 if nothing listens."""
    try:
        async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}{path}") as response:
            return response.status, await response.text()
    except aiohttp.ClientError:
        return 0, ""


async def samples(port: int) -> Samples:
    """All samples of `/metrics`."""
    status, body = await answer(port, "/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """One sample."""
    return found[name, frozenset(labels.items())]


async def until_ready(port: int) -> None:
    """Wait until the worker is ready."""

    async def ready() -> bool:
        return (await answer(port, "/health/ready"))[0] == 200

    await eventually(ready, "the worker is ready")


async def test_a_worker_reports_its_work(
    broker: AbstractConnection, settings: Settings, sessions: Sessions, tmp_path: Path
) -> None:
    """Registrations by outcome, batches, events, who holds the relay, and what waits in outbox and queues."""
    ports = free_ports(["first", "second"])
    async with (
        worker_process(settings, tmp_path, PODIUM_WORKER_PORT=str(ports["first"])),
        worker_process(settings, tmp_path, PODIUM_WORKER_PORT=str(ports["second"])),
    ):
        for port in ports.values():
            await until_ready(port)
        for number, image in enumerate((None, "a", "b"), start=1):
            await publish(broker, a_body("bot", deployment_id="v1", docker_image=image))
            await eventually_rows(sessions, "SELECT 1 FROM registrations", number)
        await eventually_rows(sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL", 3)

        async def counted() -> bool:
            both = [await samples(port) for port in ports.values()]
            return sum(value(found, "podium_registration_batch_messages_sum") for found in both) == 3

        await eventually(counted, "all messages are counted")
        both = [await samples(port) for port in ports.values()]
        assert sorted(value(found, "podium_relay_active") for found in both) == [0, 1]
        published = sum(value(found, "podium_events_published_total") for found in both)
        assert published == len(await eventually_rows(sessions, "SELECT 1 FROM outbox", 3))
        outcomes: dict[str, float] = {}
        for found in both:
            for (name, labels), count in found.items():
                if name == "podium_registrations_total":
                    outcomes[dict(labels)["outcome"]] = outcomes.get(dict(labels)["outcome"], 0) + count
        assert outcomes == {"Registered": 2, "Rejected": 1}
        registered = ("podium_agent_registrations_total", frozenset({("agent", "bot"), ("outcome", "Registered")}))
        assert sum(found.get(registered, 0) for found in both) == 2
        for found in both:
            assert value(found, "podium_parked_messages") == 1
            assert value(found, "podium_production_failed") == 0
            assert value(found, "podium_queue_consumers", queue=REGISTRATIONS_QUEUE) == 2
            assert value(found, "podium_worker_ready", worker="registrar") == 1
            assert value(found, "podium_outbox_unpublished_events") == 0
            assert value(found, "podium_queue_messages", queue=REGISTRATIONS_QUEUE) == 0


@pytest.mark.usefixtures("broker")
async def test_a_worker_without_a_server_is_live_and_not_ready(settings: Settings, tmp_path: Path) -> None:
    """It names the workers that wait, and its metrics can still be read."""
    ports = free_ports(["worker", "nothing"])
    env = {"PODIUM_WORKER_PORT": str(ports["worker"]), "PODIUM_AMQP_URL": f"amqp://127.0.0.1:{ports['nothing']}/"}
    async with worker_process(settings, tmp_path, "registrar janitor", **env):

        async def waits() -> bool:
            status, body = await answer(ports["worker"], "/health/ready")
            return status == 503 and '"registrar": "retrying"' in body and '"probes": "working"' in body

        await eventually(waits, "the registrar waits for the broker")
        assert (await answer(ports["worker"], "/health/live"))[0] == 200
        found = await samples(ports["worker"])
        assert math.isnan(value(found, "podium_queue_messages", queue=REGISTRATIONS_QUEUE))
        assert value(found, "podium_outbox_unpublished_events") == 0
