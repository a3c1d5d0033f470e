"""Checks of RabbitMQ: its version, the exchanges and queues, and that registrars consume."""

from collections.abc import AsyncIterator

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ProbableAuthenticationError,
)
from pamqp.commands import Queue

from contracts import topology
from podium.cli.doctor.checks import Check, Part, first_line, host_and_port
from services.settings import Settings
from services.tls import broker_url, certificate_problem
from workers.amqp.connection import open_connection

MIN_VERSION = (3, 10)
CONNECT_SECONDS = 5
MANY_WAITING = 10_000
ALMOST_FULL = 0.8

MIGRATE = "run 'podium migrate'"
AS_OWNER = "run this with the user that declared it"

part = Part("RabbitMQ")


async def check_broker(settings: Settings) -> AsyncIterator[Check]:
    """Run the checks, and yield each result at once. Missing exchanges and queues are not declared."""
    url = settings.amqp_url.get_secret_value()
    if not url:
        return
    address = host_and_port(url)
    try:
        async with await open_connection(broker_url(settings), CONNECT_SECONDS) as connection:
            yield _version(connection, address)
            for exchange in (topology.REGISTRATIONS_EXCHANGE, topology.EVENTS_EXCHANGE):
                yield await _exchange(connection, exchange)
            arguments = topology.registrations_arguments(settings.registrations_max_length, settings.delivery_limit)
            for name, expected in (
                (topology.PARKED_QUEUE, topology.parked_arguments()),
                (topology.REGISTRATIONS_QUEUE, arguments),
            ):
                queue = await _declared(connection, name)
                yield await _arguments(connection, name, expected) if queue else _missing(f"the queue {name}")
            if queue:
                yield _consumers(queue)
                yield _waiting(queue, settings.registrations_max_length)
    except (AuthenticationError, ProbableAuthenticationError):
        yield part.failed(f"{address} refuses this user or password", "correct PODIUM_AMQP_URL")
    except (*CONNECTION_EXCEPTIONS, ValueError) as error:
        if (problem := certificate_problem(error)) is not None:
            yield part.failed(f"{address}: {problem}", "check PODIUM_AMQP_CA_FILE and the host in PODIUM_AMQP_URL")
            return
        advice = "is it running, and is PODIUM_AMQP_URL right?"
        yield part.failed(f"{address} cannot be used: {first_line(error)}", advice)


def _version(connection: AbstractConnection, address: str) -> Check:
    transport = connection.transport
    properties = transport.connection.server_properties if transport else {}
    version = str(properties.get("version", "unknown"))
    numbers = tuple(int(number) for number in version.split(".")[:2] if number.isdigit())
    if len(numbers) == len(MIN_VERSION) and numbers < MIN_VERSION:
        return part.failed(f"{address} is version {version}", "Podium needs 3.10 or later")
    return part.ok(f"{address} answers, version {version}")


async def _exchange(connection: AbstractConnection, name: str) -> Check:
    try:
        # A refusal closes the channel, so each check has its own.
        channel = await connection.channel()
        await channel.declare_exchange(name, passive=True)
        # The exchange exists. The broker refuses to declare it again with another type.
        await channel.declare_exchange(name, "topic", durable=True)
        await channel.close()
    except ChannelNotFoundEntity:
        return _missing(f"the exchange {name}")
    except ChannelPreconditionFailed as error:
        return part.failed(f"the exchange {name} differs: {first_line(error)}", f"delete it and {MIGRATE}")
    except ChannelClosed as error:
        return part.warning(f"the exchange {name} could not be compared: {first_line(error)}", AS_OWNER)
    return part.ok(f"the exchange {name} exists")


async def _declared(connection: AbstractConnection, name: str) -> Queue.DeclareOk | None:
    """The counts of the queue; None if it does not exist."""
    try:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, passive=True)
        await channel.close()
    except ChannelNotFoundEntity:
        return None
    return queue.declaration_result


async def _arguments(connection: AbstractConnection, name: str, expected: topology.QueueArguments) -> Check:
    """Whether an existing queue has these arguments: the broker refuses to declare it again with others."""
    try:
        channel = await connection.channel()
        await channel.declare_queue(name, durable=True, arguments=expected)
        await channel.close()
    except ChannelPreconditionFailed as error:
        return part.failed(
            f"the queue {name} has other arguments: {first_line(error)}",
            "use the same PODIUM_REGISTRATIONS_MAX_LENGTH and PODIUM_DELIVERY_LIMIT everywhere, or delete the empty "
            f"queue and {MIGRATE}",
        )
    except ChannelClosed as error:
        return part.warning(f"the queue {name} could not be compared: {first_line(error)}", AS_OWNER)
    return part.ok(f"the queue {name} exists with the right arguments")


def _missing(what: str) -> Check:
    return part.failed(f"{what} does not exist", MIGRATE)


def _consumers(queue: Queue.DeclareOk) -> Check:
    count = queue.consumer_count or 0
    if not count:
        return part.failed("no registrar consumes registrations", "start 'podium worker'")
    return part.ok(f"{count} registrar{'s consume' if count > 1 else ' consumes'} registrations")


def _waiting(queue: Queue.DeclareOk, limit: int) -> Check:
    count = queue.message_count or 0
    finding = f"{count} registration{' waits' if count == 1 else 's wait'}"
    if count >= limit * ALMOST_FULL:
        return part.failed(f"{finding}, the maximum is {limit}", "start more 'podium worker registrar'")
    if count >= MANY_WAITING:
        return part.warning(finding, "start more 'podium worker registrar' if the number does not fall")
    return part.ok(finding)
