"""Sending a parked message to the broker once more, on a connection that lives as long as that takes."""

import asyncio
from contextlib import suppress

from aio_pika import Connection, DeliveryMode, Message
from aio_pika.exceptions import AMQPError, DeliveryError, PublishError
from yarl import URL

from contracts.topology import REGISTRATIONS_EXCHANGE
from services.cancellation import lost_as
from services.errors import BrokerUnavailable
from services.registration.parked import Envelope
from services.settings import Settings

CONNECT_SECONDS = 3.0
# Also for a broker that takes nothing during a memory alarm.
CONFIRM_SECONDS = 5.0
CLOSE_SECONDS = 1.0


async def republish(settings: Settings, envelope: Envelope, message_id: str) -> None:
    """Return once the broker has confirmed the message, which some queue has taken. Raises `BrokerUnavailable`."""
    url = settings.amqp_url.get_secret_value()
    if not url:
        raise BrokerUnavailable("The API knows no broker: set PODIUM_AMQP_URL.")
    connection = Connection(URL(url))
    try:
        await _connect(connection)
        with lost_as(ConnectionError()):
            async with asyncio.timeout(CONFIRM_SECONDS):
                channel = await connection.channel(on_return_raises=True)
                exchange = await channel.get_exchange(REGISTRATIONS_EXCHANGE, ensure=False)
                await exchange.publish(_message(envelope, message_id), envelope.routing_key, mandatory=True)
    except PublishError as error:
        raise BrokerUnavailable("No queue takes this message: did 'podium migrate' declare it?") from error
    except DeliveryError as error:
        raise BrokerUnavailable("The queue of registrations is full: try again later.") from error
    except (AMQPError, OSError, RuntimeError) as error:
        raise BrokerUnavailable("The broker did not confirm the message: try again.") from error
    finally:
        with suppress(AMQPError, OSError, RuntimeError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await connection.close()


async def _connect(connection: Connection) -> None:
    try:
        await connection.connect(timeout=CONNECT_SECONDS)
    except (AMQPError, OSError, RuntimeError) as error:
        raise BrokerUnavailable from error


def _message(envelope: Envelope, message_id: str) -> Message:
    return Message(
        envelope.body,
        headers=envelope.headers,
        message_id=message_id,
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
    )
