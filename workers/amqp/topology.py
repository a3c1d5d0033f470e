"""Declaration of exchanges, queues and bindings.

Safe to repeat. The broker refuses it if a queue or an exchange exists with other properties.
"""

from aio_pika import ExchangeType

from contracts import topology
from services.settings import Settings
from services.tls import broker_url
from workers.amqp.connection import open_connection

CONNECT_TIMEOUT_SECONDS = 10


async def declare(settings: Settings) -> None:
    """Create the exchanges, queues and bindings that do not exist yet. Raises `AMQPError` or `OSError`."""
    connection = await open_connection(broker_url(settings), CONNECT_TIMEOUT_SECONDS)
    async with connection:
        channel = await connection.channel()
        await channel.declare_exchange(topology.EVENTS_EXCHANGE, ExchangeType.TOPIC, durable=True)
        registrations = await channel.declare_exchange(
            topology.REGISTRATIONS_EXCHANGE, ExchangeType.TOPIC, durable=True
        )
        await channel.declare_queue(topology.PARKED_QUEUE, durable=True, arguments=topology.parked_arguments())
        queue = await channel.declare_queue(
            topology.REGISTRATIONS_QUEUE,
            durable=True,
            arguments=topology.registrations_arguments(settings.registrations_max_length, settings.delivery_limit),
        )
        await queue.bind(registrations, topology.REGISTRATIONS_BINDING)
