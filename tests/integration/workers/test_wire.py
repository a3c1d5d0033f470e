"""Workers read every message that the broker accepts: one message with invalid properties does not block others."""

import struct
from dataclasses import dataclass
from pathlib import Path

import aiormq
import pytest
from aio_pika.abc import AbstractConnection
from aiormq import spec
from aiormq.abc import DeliveredMessage
from pydantic_core import to_json
from structlog.testing import capture_logs

from contracts import topology
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.workers.conftest import working
from tests.support.broker import publish, ready_messages
from tests.support.factories import a_body
from tests.support.processes import worker_process
from tests.support.waiting import eventually, eventually_rows, rows
from workers.amqp.delivery import Delivery
from workers.runner import run_registrar

NANOSECONDS = struct.pack(">Q", 1_764_000_000_000_000_000)
NOT_UTF8 = b"\xff\xfe"
NESTED = 15_000


class Raw(spec.Basic.Properties):
    """Properties as raw bytes, because the client library cannot encode them."""

    def __init__(self, name: str, value: bytes) -> None:
        super().__init__()
        self._raw = struct.pack(">H", self.flags[name]) + value

    def marshal(self) -> bytes:
        """The raw bytes."""
        return self._raw


class RawKey(str):
    """A routing key of arbitrary bytes."""

    __slots__ = ("raw",)
    raw: bytes

    def encode(self, *_: str) -> bytes:
        """The raw bytes."""
        return bytes(self.raw)


@dataclass(frozen=True)
class OddMessage:
    """A message that a program with another client library could publish."""

    properties: spec.Basic.Properties | None = None
    key: bytes = b"agent.odd"

    async def publish(self, url: str, exchange: str, body: bytes) -> None:
        """Publish the message; returns once the broker has confirmed it."""
        key = RawKey(self.key.decode(errors="replace"))
        key.raw = self.key
        connection = await aiormq.connect(url)
        channel = await connection.channel()
        await channel.basic_publish(
            body, exchange=exchange, routing_key=key, properties=self.properties, mandatory=True
        )
        await connection.close()


def table(content: bytes) -> bytes:
    """An encoded table of headers."""
    return struct.pack(">I", len(content)) + content


def tables_in_tables() -> bytes:
    """An encoded table, nested deeper than Python's recursion limit."""
    encoded = table(b"")
    for _ in range(NESTED):
        encoded = table(b"\x01aF" + encoded)
    return encoded


ODD = {
    "a time in nanoseconds": OddMessage(Raw("timestamp", NANOSECONDS)),
    "a time in nanoseconds among the headers": OddMessage(Raw("headers", table(b"\x01aT" + NANOSECONDS))),
    "a message id that is no text": OddMessage(Raw("message_id", b"\x02" + NOT_UTF8)),
    "a header's name that is no text": OddMessage(Raw("headers", table(b"\x02" + NOT_UTF8 + b"V"))),
    "tables in tables": OddMessage(Raw("headers", tables_in_tables())),
}


async def test_messages_with_odd_properties_are_applied(
    broker: AbstractConnection, settings: Settings, sessions: Sessions
) -> None:
    """Podium does not need these properties: such messages, and those after them, are applied at the first delivery."""
    url = settings.amqp_url.get_secret_value()
    for number, odd in enumerate(ODD.values()):
        body = to_json(a_body("odd", deployment_id=f"odd-{number}"))
        await odd.publish(url, topology.REGISTRATIONS_EXCHANGE, body)
    await publish(broker, a_body("good", deployment_id="good-v1"))
    with capture_logs() as logs:
        async with working(run_registrar, settings):
            await eventually_rows(sessions, "SELECT 1 FROM deployments", len(ODD) + 1)
    assert "registrar.disconnected" not in [line["action"] for line in logs]


async def test_odd_messages_are_parked(
    broker: AbstractConnection, settings: Settings, sessions: Sessions, tmp_path: Path
) -> None:
    """Registrar and drainer park them with all headers that can be stored."""
    url = settings.amqp_url.get_secret_value()
    odd = {**ODD, "a routing key that is no text": OddMessage(key=b"agent." + NOT_UTF8)}
    for number, each in enumerate(odd.values()):
        await each.publish(url, topology.REGISTRATIONS_EXCHANGE, b"{%d" % number)
        dead = OddMessage(each.properties, topology.PARKED_QUEUE.encode())
        await dead.publish(url, "", b"[%d" % number)
    async with working(run_registrar, settings), worker_process(settings, tmp_path, "drainer"):
        parked = await eventually_rows(sessions, "SELECT headers, reason FROM parked", 2 * len(odd))

        async def emptied() -> bool:
            return await ready_messages(broker, topology.PARKED_QUEUE) == 0

        await eventually(emptied, "no dead letter left")
    assert {row.reason for row in parked} == {"malformed", "dead-lettered"}
    assert [row.headers for row in parked].count({"x-podium-left-out": ["a"]}) == 2
    assert sum("x-podium-unreadable" in row.headers for row in parked) == 2


async def test_a_delivery_that_is_not_read_is_not_acknowledged_with_its_neighbours(
    broker: AbstractConnection, settings: Settings, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the library drops a delivery, the broker redelivers it: acknowledging the next one would include it."""
    read = Delivery.of
    dropped: list[bytes] = []

    def drops_one(message: DeliveredMessage) -> Delivery:
        if b"dropped" in message.body and not dropped:
            dropped.append(message.body)
            raise ValueError("cannot be read")
        return read(message)

    monkeypatch.setattr(Delivery, "of", drops_one)
    for name in ("first", "dropped", "last"):
        await publish(broker, a_body(name, deployment_id=f"{name}-v1"))
    async with working(run_registrar, settings):
        await eventually_rows(sessions, "SELECT 1 FROM deployments", 3)
    assert dropped
    assert not await rows(sessions, "SELECT 1 FROM parked")
