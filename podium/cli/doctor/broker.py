"""`podium doctor` on RabbitMQ: there, new enough, its queues as they must be, and somebody who takes from them."""

from collections.abc import AsyncIterator

from aio_pika import connect
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
from podium.cli.doctor.checks import Check, Examination, first_line, host_and_port
from services.settings import Settings

OLDEST_VERSION = (3, 10)
CONNECT_SECONDS = 5
MANY_WAITING = 10_000
ALMOST_FULL = 0.8

MIGRATE = "run 'podium migrate'"

about = Examination("RabbitMQ")


async def check_broker(settings: Settings) -> AsyncIterator[Check]:
    """The findings, as they are made. Declares nothing that is not there."""
    url = settings.amqp_url.get_secret_value()
    if not url:
        return
    where = host_and_port(url)
    try:
        async with await connect(url, timeout=CONNECT_SECONDS) as connection:
            yield _version(connection, where)
            for exchange in (topology.REGISTRATIONS_EXCHANGE, topology.EVENTS_EXCHANGE):
                yield await _exchange(connection, exchange)
            arguments = topology.registrations_arguments(settings.registrations_max_length, settings.delivery_limit)
            for name, wanted in (
                (topology.PARKED_QUEUE, topology.parked_arguments()),
                (topology.REGISTRATIONS_QUEUE, arguments),
            ):
                found = await _queue(connection, name)
                yield await _arguments(connection, name, wanted) if found else _absent(f"the queue {name}")
            if found:
                yield _consumers(found)
                yield _waiting(found, settings.registrations_max_length)
    except (AuthenticationError, ProbableAuthenticationError):
        yield about.failed(f"{where} refuses this user or password", "correct PODIUM_AMQP_URL")
    except (*CONNECTION_EXCEPTIONS, ValueError) as error:
        advice = "is it running, and is PODIUM_AMQP_URL right?"
        yield about.failed(f"{where} cannot be used: {first_line(error)}", advice)


def _version(connection: AbstractConnection, where: str) -> Check:
    transport = connection.transport
    properties = transport.connection.server_properties if transport else {}
    version = str(properties.get("version", "unknown"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) == len(OLDEST_VERSION) and numbers < OLDEST_VERSION:
        return about.failed(f"{where} is version {version}", "Podium needs 3.10 or later")
    return about.ok(f"{where} answers, version {version}")


async def _exchange(connection: AbstractConnection, name: str) -> Check:
    """Whether the topic exchange is there; looked for on a channel of its own, which a refusal closes."""
    try:
        channel = await connection.channel()
        await channel.declare_exchange(name, passive=True)
        # Declared again as it must be: refused if it is of another type.
        await channel.declare_exchange(name, "topic", durable=True)
        await channel.close()
    except ChannelNotFoundEntity:
        return _absent(f"the exchange {name}")
    except ChannelPreconditionFailed as error:
        return about.failed(f"the exchange {name} is of another shape: {first_line(error)}", f"delete it and {MIGRATE}")
    except ChannelClosed as error:
        return about.warning(f"the exchange {name} could not be compared: {first_line(error)}", "as its owner one can")
    return about.ok(f"the exchange {name} is there")


async def _queue(connection: AbstractConnection, name: str) -> Queue.DeclareOk | None:
    try:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, passive=True)
        await channel.close()
    except ChannelNotFoundEntity:
        return None
    return queue.declaration_result


async def _arguments(connection: AbstractConnection, name: str, wanted: topology.QueueArguments) -> Check:
    """Whether the queue, which is there, has these arguments: the broker compares when it is declared again."""
    try:
        channel = await connection.channel()
        await channel.declare_queue(name, durable=True, arguments=wanted)
        await channel.close()
    except ChannelPreconditionFailed as error:
        return about.failed(
            f"the queue {name} has other arguments: {first_line(error)}",
            f"set PODIUM_REGISTRATIONS_MAX_LENGTH and PODIUM_DELIVERY_LIMIT alike, or delete it empty and {MIGRATE}",
        )
    except ChannelClosed as error:
        return about.warning(f"the queue {name} could not be compared: {first_line(error)}", "as its owner one can")
    return about.ok(f"the queue {name} is as it must be")


def _absent(what: str) -> Check:
    return about.failed(f"{what} is not there", MIGRATE)


def _consumers(found: Queue.DeclareOk) -> Check:
    count = found.consumer_count or 0
    if not count:
        return about.failed("nobody takes registrations", "start 'podium worker'")
    return about.ok(f"{count} registrar{'s take' if count > 1 else ' takes'} registrations")


def _waiting(found: Queue.DeclareOk, limit: int) -> Check:
    count = found.message_count or 0
    if count >= limit * ALMOST_FULL:
        return about.failed(f"{count} registrations wait, of {limit} at most", "start more 'podium worker registrar'")
    if count >= MANY_WAITING:
        return about.warning(f"{count} registrations wait", "start more 'podium worker registrar' if it does not fall")
    return about.ok(f"{count} registrations wait")
