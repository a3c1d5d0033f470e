"""Announcing a pod: build the message, then publish it on RabbitMQ or post it to the API until it is confirmed."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Self
from uuid import uuid4

import typer
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelNotFoundEntity,
    DeliveryError,
    ProbableAuthenticationError,
    PublishError,
)
from pydantic import ValidationError
from pydantic_core import from_json
from yarl import URL

from contracts.fields import TRACEPARENT_PATTERN
from contracts.messages import DeregisterInstance, RegisterAgent
from contracts.signatures import SIGNATURE_HEADER, signature
from contracts.topology import REGISTRATIONS_EXCHANGE, registration_key
from podium.cli.command import CommandContext
from podium.cli.durations import format_duration
from podium.cli.exits import ExitCode, Failure
from services.cancellation import lost_as
from services.registration.signatures import signing_key
from services.tls import certificate_problem, check_ca_file, trusting
from workers.amqp.connection import open_connection
from workers.retry import at_most, backoff

CONNECT_SECONDS = 5
CLOSE_SECONDS = 2
# Longer than a healthy broker needs; after it the connection is replaced.
ATTEMPT_SECONDS = 10
# https://www.rabbitmq.com/docs/direct-reply-to
REPLY_TO = "amq.rabbitmq.reply-to"


@dataclass(frozen=True)
class Decision:
    """The outcome of an announcement, as the registrar's reply reports it."""

    outcome: str
    reason: str | None = None
    message: str | None = None


# Waits this many seconds for the registrar's decision; None if no reply arrives.
AwaitDecision = Callable[[float], Awaitable[Decision | None]]
PodMessage = RegisterAgent | DeregisterInstance
# Returns once the message is confirmed; raises `NotConfirmed` to be called again.
Send = Callable[[PodMessage], Awaitable[AwaitDecision | None]]

# The variable and the option for each field of the announcement.
_SOURCES = {
    "name": "AGENT_NAME or --name",
    "acp_url": "ACP_URL or --acp-url (with ACP_PORT)",
    "description": "AGENT_DESCRIPTION or --description",
    "acp_type": "ACP_TYPE or --acp-type",
    "agent_input_type": "AGENT_INPUT_TYPE or --input-type",
    "registration_metadata.deployment_id": "AGENTEX_DEPLOYMENT_ID or --deployment",
    "registration_metadata.instance_id": "AGENT_INSTANCE_ID or --instance",
    "deployment_id": "AGENTEX_DEPLOYMENT_ID or --deployment",
    "instance_id": "AGENT_INSTANCE_ID or --instance",
    "registration_metadata.docker_image": "AGENT_IMAGE or --image",
    "registration_metadata.rpc_path": "--rpc-path",
    "registration_metadata.health_path": "--health-path",
    "registration_metadata.error_style": "--error-style",
}


class NotConfirmed(Exception):
    """An attempt was not confirmed and can be repeated; the message says why and what to do."""


@dataclass(frozen=True)
class Pod:
    """The fields that a pod announces, validated."""

    fields: Mapping[str, Any]

    @classmethod
    def from_options(
        cls,
        *,
        name: str | None,
        acp_url: str | None,
        acp_port: int | None,
        metadata: Mapping[str, Any],
        **more: str | None,
    ) -> Self:
        """The pod with these fields; None leaves a field out. Raises `Failure` that names the variable to set."""
        for value, field in ((name, "name"), (acp_url, "acp_url")):
            if not value:
                raise Failure(f"The pod's {field} is not set: set {_SOURCES[field]}.", ExitCode.USAGE)
        address = f"{str(acp_url).rstrip('/')}:{acp_port}" if acp_port is not None else acp_url
        known = {key: value for key, value in metadata.items() if value is not None}
        pod = cls(
            {
                "name": name,
                "acp_url": address,
                **{key: value for key, value in more.items() if value is not None},
                **({"registration_metadata": known} if known else {}),
            }
        )
        try:
            pod.announcement()
        except ValidationError as error:
            raise _invalid(error) from None
        return pod

    def announcement(self) -> RegisterAgent:
        """A new announcement: with the current time and a message id of its own."""
        return RegisterAgent.model_validate({**self.fields, "message_id": uuid4(), "registered_at": datetime.now(UTC)})

    def goodbye(self) -> DeregisterInstance | None:
        """A new goodbye of this pod; None if it names no instance."""
        metadata = self.fields.get("registration_metadata", {})
        if "instance_id" not in metadata:
            return None
        return goodbye_of(self.fields["name"], metadata["deployment_id"], metadata["instance_id"])


def goodbye_of(name: str | None, deployment_id: str | None, instance_id: str | None) -> DeregisterInstance:
    """A new goodbye of an instance. Raises `Failure` that names the variable to set."""
    named = {"name": name, "deployment_id": deployment_id, "instance_id": instance_id}
    for field, value in named.items():
        if not value:
            raise Failure(f"The pod's {field} is not set: set {_SOURCES[field]}.", ExitCode.USAGE)
    fields = {**named, "kind": "deregister", "message_id": uuid4(), "registered_at": datetime.now(UTC)}
    try:
        return DeregisterInstance.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None


def parse_facts(pairs: Sequence[str]) -> dict[str, str]:
    """The facts of NAME=VALUE pairs. Raises `typer.BadParameter`."""
    facts = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE.", param_hint="--fact")
        facts[name] = value
    return facts


async def send_until_confirmed(
    send: Send, message: PodMessage, limit: timedelta | None, note: Callable[[str], None]
) -> AwaitDecision | None:
    """Send the same message until it is confirmed. Returns a function that waits for the registrar's decision.

    Calls `note` with the cause of a failure when the cause changes. Raises `Failure` after the limit.
    """
    cause, attempt = "", 0
    try:
        async with asyncio.timeout(limit.total_seconds() if limit else None):
            while True:
                try:
                    return await _attempt(send, message)
                except NotConfirmed as error:
                    attempt += 1
                    if str(error) != cause:
                        cause = str(error)
                        note(f"{cause} Trying again ...")
                    await asyncio.sleep(backoff(attempt))
    except TimeoutError:
        assert limit is not None  # without a limit there is no timeout here
        done = "announced" if isinstance(message, RegisterAgent) else "deregistered"
        raise Failure(
            f"{message.name} was not {done} within {format_duration(limit)}. {cause}".rstrip(), ExitCode.TIMED_OUT
        ) from None


def publisher(environment: Mapping[str, str]) -> Send:
    """A function that publishes on the broker of PODIUM_AMQP_URL. Raises `Failure` if the variable is wrong."""
    url = environment.get("PODIUM_AMQP_URL", "")
    if not url:
        raise Failure(
            "PODIUM_AMQP_URL is not set: set it to the address of the broker ('podium up' writes its own to "
            ".podium/podium.env), or post to the API with --http.",
            ExitCode.USAGE,
        )
    if not re.match(r"amqps?://[^/]", url):
        raise Failure("PODIUM_AMQP_URL is not an address such as amqp://user:password@host:5672/.", ExitCode.USAGE)
    try:
        ca_file = environment.get("PODIUM_AMQP_CA_FILE", "")
        url = trusting(url, check_ca_file(ca_file)) if ca_file else url
    except ValueError as error:
        raise Failure(f"PODIUM_AMQP_CA_FILE is not valid: {error}.", ExitCode.USAGE) from None
    if ca_file and not url.startswith("amqps:"):
        raise Failure("PODIUM_AMQP_CA_FILE is not valid: PODIUM_AMQP_URL must begin with amqps://.", ExitCode.USAGE)

    async def publish(message: PodMessage) -> AwaitDecision:
        try:
            return await _publish(url, message, agent_key(environment, message.name))
        except CONNECTION_EXCEPTIONS as error:
            raise NotConfirmed(_cause_of(error, url)) from error

    return publish


def agent_key(environment: Mapping[str, str], agent_name: str) -> str | None:
    """The key with which messages of this agent are signed; None if neither it nor the secret key is set."""
    secret_key = environment.get("PODIUM_SECRET_KEY")
    derived = signing_key(secret_key, agent_name) if secret_key else None
    return environment.get("PODIUM_AGENT_KEY") or derived


def poster(context: CommandContext) -> Send:
    """A function that posts to the API, with the pod's own key if AGENT_API_KEY is set.

    The function raises `Failure` if the API refuses the announcement.
    """
    key = os.environ.get("AGENT_API_KEY")

    async def post(message: PodMessage) -> None:
        path = "/agents/register" if isinstance(message, RegisterAgent) else "/agents/deregister"
        body = message.model_dump(mode="json", exclude_unset=True)
        headers = {"x-agent-api-key": key} if key else {}
        try:
            await context.api.call("POST", path, json=body, headers=headers)
        except Failure as failure:
            if failure.code != ExitCode.UNAVAILABLE:
                raise
            raise NotConfirmed(failure.message) from failure

    return post


async def _attempt(send: Send, message: PodMessage) -> AwaitDecision | None:
    try:
        with lost_as(NotConfirmed("The connection to the broker was lost.")):
            async with asyncio.timeout(ATTEMPT_SECONDS) as timeout:
                return await send(message)
    except TimeoutError:
        if not timeout.expired():
            raise
        raise NotConfirmed(f"No confirmation arrived within {ATTEMPT_SECONDS} s.") from None


async def _publish(url: str, message: PodMessage, key: str | None) -> AwaitDecision:
    connection = await open_connection(url, CONNECT_SECONDS)
    try:
        # Without on_return_raises, the broker confirms a message that no queue takes, and the message is lost.
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange(REGISTRATIONS_EXCHANGE, ensure=False)
        replies: asyncio.Queue[bytes] = asyncio.Queue()

        async def keep(reply: AbstractIncomingMessage) -> None:
            replies.put_nowait(reply.body)

        await (await channel.get_queue(REPLY_TO, ensure=False)).consume(keep, no_ack=True)
        await exchange.publish(_amqp_message(message, key), registration_key(message.name), mandatory=True)
    except BaseException:
        await at_most(CLOSE_SECONDS, connection.close())
        raise
    return partial(_decision, connection, replies)


async def _decision(connection: AbstractConnection, replies: "asyncio.Queue[bytes]", seconds: float) -> Decision | None:
    """The registrar's decision if its reply arrives within these seconds. Closes the connection."""
    try:
        async with asyncio.timeout(seconds):
            reply = from_json(await replies.get())
    except (TimeoutError, ValueError):
        return None
    finally:
        await at_most(CLOSE_SECONDS, connection.close())
    return Decision(reply["outcome"], reply["reason"], reply["message"])


def _amqp_message(message: PodMessage, key: str | None) -> Message:
    """The message, signed if there is a key."""
    trace = os.environ.get("TRACEPARENT", "")
    body = message.model_dump_json(exclude_unset=True).encode()
    headers = {"traceparent": trace} if re.fullmatch(TRACEPARENT_PATTERN, trace) else {}
    if key is not None:
        headers[SIGNATURE_HEADER] = signature(key, message.message_id, body)
    return Message(
        body,
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=str(message.message_id),
        reply_to=REPLY_TO,
        headers=dict(headers),
    )


def _invalid(error: ValidationError) -> Failure:
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return Failure(f"{_SOURCES.get(field, field)} is not valid: {message}.", ExitCode.USAGE)


def _cause_of(error: BaseException, url: str) -> str:
    # The URL contains the password, so only host and port are shown.
    parsed = URL(url)
    broker = f"RabbitMQ at {parsed.host}:{parsed.port or 5672}"
    if (problem := certificate_problem(error)) is not None:
        return f"{broker} cannot be used: {problem}. Check PODIUM_AMQP_CA_FILE."
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return f"{broker} refuses this user or password: check PODIUM_AMQP_URL."
    if isinstance(error, PublishError | ChannelNotFoundEntity):
        return f"{broker} has no queue for registrations: 'podium migrate' declares it."
    if isinstance(error, DeliveryError):
        return f"{broker} refuses registrations because its queue is full: is a 'podium worker' running?"
    return f"{broker} cannot be used ({type(error).__name__}): is it running?"
