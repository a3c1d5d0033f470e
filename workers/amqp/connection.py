"""Connections to RabbitMQ that detect a silent broker, and whose closing never blocks for long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika import Connection
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPConnectionError, AMQPError
from yarl import URL

from workers.retry import at_most

CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 2.0
# aiormq closes the connection after three heartbeats without an answer, plus one second for each.
HEARTBEAT_SECONDS = 5
CHANNEL_CLOSED = "The broker closed the channel."
NO_ANSWER = f"The broker did not answer within {CONNECT_SECONDS:.0f} s."


def with_heartbeat(url: str) -> str:
    """The URL with Podium's heartbeat interval, unless the URL sets one itself."""
    parsed = URL(url)
    return url if "heartbeat" in parsed.query else str(parsed.update_query(heartbeat=HEARTBEAT_SECONDS))


async def open_connection(url: str, seconds: float) -> AbstractConnection:
    """A connection that does not reconnect by itself. Raises what `aio_pika.connect` raises.

    One that cannot be opened is closed at once. The client library leaves that to the garbage collector, which may run
    where nothing can be awaited.
    """
    connection = Connection(URL(url))
    try:
        await connection.connect(timeout=seconds)
    except BaseException:
        await at_most(CLOSE_SECONDS, connection.close())
        raise
    return connection


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AbstractConnection]:
    """A connection that does not reconnect by itself. Raises `AMQPError`, also if the broker is unreachable."""
    try:
        connection = await open_connection(with_heartbeat(url), CONNECT_SECONDS)
    except AMQPError:
        raise
    except OSError as error:
        reason = str(error) or f"no answer within {CONNECT_SECONDS:.0f} s"
        raise AMQPConnectionError(f"The broker cannot be reached: {reason}") from error
    try:
        yield connection
    finally:
        await at_most(CLOSE_SECONDS, connection.close())
