"""The memory of a worker process stays bounded, whatever bodies it receives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractConnection
from pydantic_core import to_json

from contracts import topology
from contracts.messages import REGISTRATION_MAX_BYTES
from services.settings import Settings
from services.storage.database import Sessions
from tests.support.broker import publish, ready_messages
from tests.support.factories import a_body
from tests.support.forked_programs import NEW_PROCESS
from tests.support.processes import megabytes, worker_process
from tests.support.waiting import eventually, eventually_rows, rows

MESSAGES = 200
# Above the memory of an idle worker. The bodies alone are 200 MB; parsed, they would be several GB.
MAY_GROW_MB = 120
# The JSON whose parsed form takes most memory: an empty object of two bytes and a comma becomes 64 bytes and more.
EMPTY_OBJECT = b"{},"


def a_body_of(size: int, number: int) -> bytes:
    """A valid announcement of about this many bytes, nearly all of them empty objects."""
    body: dict[str, Any] = a_body(f"bot-{number}", deployment_id=f"v-{number}", registration_metadata={"objects": 0})
    content = to_json(body)
    room = size - len(content) - 4
    objects = b"[" + (EMPTY_OBJECT * (room // len(EMPTY_OBJECT)))[:-1] + b"]"
    return content.replace(b'"objects":0', b'"objects":' + objects)


BODIES: dict[str, tuple[int, Callable[[int], str]]] = {
    "too large": (1024 * 1024, lambda count: f"SELECT 1 FROM parked WHERE reason = 'message-too-large' LIMIT {count}"),
    "as large as possible": (REGISTRATION_MAX_BYTES, lambda count: f"SELECT 1 FROM deployments LIMIT {count}"),
}


@pytest.mark.parametrize("kind", BODIES)
async def test_large_bodies_do_not_fill_the_memory_of_a_worker(
    broker: AbstractConnection, sessions: Sessions, settings: Settings, tmp_path: Path, kind: str
) -> None:
    """G54: 200 of them are in the queue; each is applied or parked, and a good announcement behind them is applied."""
    size, settled = BODIES[kind]
    async with worker_process(settings, tmp_path, "registrar drainer", **NEW_PROCESS) as worker:
        await publish(broker, a_body("first"))
        await eventually_rows(sessions, "SELECT 1 FROM agents WHERE name = 'first'")
        before = megabytes(worker.pid, "VmRSS")
    channel = await broker.channel()
    exchange = await channel.get_exchange(topology.REGISTRATIONS_EXCHANGE, ensure=False)
    for number in range(MESSAGES):
        message = Message(a_body_of(size, number), delivery_mode=DeliveryMode.PERSISTENT)
        await exchange.publish(message, topology.registration_key(f"bot-{number}"))
    await publish(broker, a_body("last"))
    async with worker_process(settings, tmp_path, "registrar drainer", **NEW_PROCESS) as worker:
        await eventually_rows(sessions, "SELECT 1 FROM agents WHERE name = 'last'", seconds=60)
        await eventually_rows(sessions, settled(MESSAGES), MESSAGES, seconds=60)

        async def drained() -> bool:
            return await ready_messages(broker, topology.PARKED_QUEUE) == 0

        await eventually(drained, "no dead letter is left")
        most = megabytes(worker.pid, "VmHWM")
    print(f"{kind}: {before:.0f} MB when idle, at most {most:.0f} MB")  # noqa: T201 - the measured values
    assert most < before + MAY_GROW_MB
    assert len(await rows(sessions, "SELECT 1 FROM registrations")) >= (kind != "too large") * MESSAGES
