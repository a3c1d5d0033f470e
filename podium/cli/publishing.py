"""The two ways of an announcement: published on RabbitMQ, mandatory and confirmed, or posted to the API."""

import asyncio
import os
import re
from collections.abc import Mapping
from functools import partial

from aio_pika import DeliveryMode, Message, connect
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelNotFoundEntity,
    DeliveryError,
    ProbableAuthenticationError,
    PublishError,
)
from pydantic_core import from_json
from yarl import URL

from contracts.fields import TRACEPARENT_PATTERN
from contracts.messages import RegisterAgent
from contracts.topology import REGISTRATIONS_EXCHANGE, registration_key
from podium.cli.announcing import Ask, NotSent, Send, Told
from podium.cli.calling import Call
from podium.cli.exits import ExitCode, Failure
from workers.retry import at_most

CONNECT_SECONDS = 5
CLOSE_SECONDS = 2
# https://www.rabbitmq.com/docs/direct-reply-to
REPLY_TO = "amq.rabbitmq.reply-to"


def publisher(environment: Mapping[str, str]) -> Send:
    """Publishes on the broker of the environment. Raises `Failure` if none is named."""
    url = environment.get("PODIUM_AMQP_URL", "")
    if not url:
        raise Failure(
            "PODIUM_AMQP_URL is not set: set it to the broker's address (.podium/podium.env has that of 'podium up'), "
            "or post to the API with --http.",
            ExitCode.USAGE,
        )
    if not re.match(r"amqps?://[^/]", url):
        raise Failure("PODIUM_AMQP_URL is no address such as amqp://user:password@host:5672/.", ExitCode.USAGE)

    async def publish(message: RegisterAgent) -> Ask:
        try:
            return await _publish(url, message)
        except CONNECTION_EXCEPTIONS as error:
            raise NotSent(_why(error, url)) from error

    return publish


def poster(call: Call) -> Send:
    """Posts to the API, with the pod's own key if it has one (AGENT_API_KEY). Refusals are `Failure`s for good."""
    key = os.environ.get("AGENT_API_KEY")

    async def post(message: RegisterAgent) -> None:
        body = message.model_dump(mode="json", exclude_unset=True)
        headers = {"x-agent-api-key": key} if key else {}
        try:
            await call.api.call("POST", "/agents/register", json=body, headers=headers)
        except Failure as failure:
            if failure.code != ExitCode.UNAVAILABLE:
                raise
            raise NotSent(failure.sentence) from failure

    return post


async def _publish(url: str, message: RegisterAgent) -> Ask:
    connection = await connect(url, timeout=CONNECT_SECONDS)
    try:
        # Without this a message that no queue takes is confirmed all the same, and gone.
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange(REGISTRATIONS_EXCHANGE, ensure=False)
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        async def keep(answer: AbstractIncomingMessage) -> None:
            answers.put_nowait(answer.body)

        await (await channel.get_queue(REPLY_TO, ensure=False)).consume(keep, no_ack=True)
        await exchange.publish(_sent(message), registration_key(message.name), mandatory=True)
    except BaseException:
        await at_most(CLOSE_SECONDS, connection.close())
        raise
    return partial(_answer, connection, answers)


async def _answer(connection: AbstractConnection, answers: "asyncio.Queue[bytes]", seconds: float) -> Told | None:
    """What the worker says that decides the announcement; the connection is closed afterwards."""
    try:
        async with asyncio.timeout(seconds):
            found = from_json(await answers.get())
    except (TimeoutError, ValueError):
        return None
    finally:
        await at_most(CLOSE_SECONDS, connection.close())
    return Told(found["outcome"], found["reason"], found["message"])


def _sent(message: RegisterAgent) -> Message:
    trace = os.environ.get("TRACEPARENT", "")
    return Message(
        message.model_dump_json(exclude_unset=True).encode(),
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=str(message.message_id),
        reply_to=REPLY_TO,
        headers={"traceparent": trace} if re.fullmatch(TRACEPARENT_PATTERN, trace) else {},
    )


def _why(error: BaseException, url: str) -> str:
    where = f"RabbitMQ at {_address(url)}"
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return f"{where} refuses this user or password: check PODIUM_AMQP_URL."
    if isinstance(error, PublishError | ChannelNotFoundEntity):
        return f"{where} has no queue for registrations: 'podium migrate' declares it."
    if isinstance(error, DeliveryError):
        return f"{where} takes no more registrations, its queue is full: is a 'podium worker' running?"
    return f"{where} cannot be used ({type(error).__name__}): is it running?"


def _address(url: str) -> str:
    """Host and port, without what is secret."""
    parsed = URL(url)
    return f"{parsed.host}:{parsed.port or 5672}"
