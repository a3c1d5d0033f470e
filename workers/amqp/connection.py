"""The way to RabbitMQ: connections that notice a silent broker, and that never hold up whoever leaves them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika import Connection
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPConnectionError, AMQPError
from yarl import URL

from workers.retry import at_most

CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 2.0
LOST = "The connection to the broker was lost."
# aiormq gives a broker that says nothing up after three of these, and a second for each.
HEARTBEAT_SECONDS = 5


def with_heartbeat(url: str) -> str:
    """The URL with our heartbeat, unless it names another one."""
    found = URL(url)
    return url if "heartbeat" in found.query else str(found.update_query(heartbeat=HEARTBEAT_SECONDS))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AbstractConnection]:
    """A connection that is not made again by itself. Raises `AMQPError`, also for a broker that is not there."""
    connection = Connection(URL(with_heartbeat(url)))
    try:
        try:
            await connection.connect(timeout=CONNECT_SECONDS)
        except AMQPError:
            raise
        except OSError as error:
            why = str(error) or f"no answer within {CONNECT_SECONDS:.0f} s"
            raise AMQPConnectionError(f"The broker cannot be reached: {why}") from error
        yield connection
    finally:
        await at_most(CLOSE_SECONDS, connection.close())
