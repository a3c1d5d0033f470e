"""Connections to RabbitMQ."""

import pytest
from aio_pika import Connection
from aio_pika.exceptions import AMQPConnectionError

from workers.amqp.connection import open_connection


async def test_a_connection_that_cannot_be_opened_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to the garbage collector, it warns if that runs in a thread without an event loop."""
    closed: list[Connection] = []

    async def close(connection: Connection) -> None:
        closed.append(connection)

    monkeypatch.setattr(Connection, "close", close)
    monkeypatch.delattr(Connection, "__del__")
    with pytest.raises(AMQPConnectionError):
        await open_connection("amqp://127.0.0.1:1/", 1)
    assert len(closed) == 1
