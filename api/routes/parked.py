"""Parked messages: registrations that could not be applied. They can be read, sent again and dropped."""

import asyncio
from base64 import b64encode
from contextlib import suppress
from datetime import datetime
from typing import Any, Literal, Self
from uuid import UUID

import structlog
from aio_pika import Connection, DeliveryMode, Message
from aio_pika.exceptions import AMQPError, DeliveryError, PublishError
from litestar import delete, get, post
from litestar.params import FromPath, JSONBody
from pydantic import BaseModel, ConfigDict, Field
from yarl import URL

from api.http.access import needs
from api.http.parameters import (
    AgentFilter,
    AnyRequest,
    Limit,
    PageNumber,
    agent_filter,
    caller,
    identity_of,
    parked_uuid,
)
from api.http.problems import documented
from api.http.requests import JsonBody, OptionalBody, RetryRequest
from api.http.responses import DeletedAnswer
from api.resources import Injected, Resources
from contracts.signatures import SIGNATURE_HEADER
from contracts.topology import REGISTRATIONS_EXCHANGE
from services.cancellation import lost_as
from services.errors import BrokerUnavailable, ParkedNotFound
from services.registration.parked import (
    Envelope,
    drop_parked,
    get_parked,
    list_parked,
    mark_retried,
    retry_id,
)
from services.registration.signatures import retry_of
from services.settings import Settings
from services.storage.database import in_transaction
from services.storage.models import Parked
from services.storage.pages import Page
from services.tls import broker_url, certificate_problem

ITEM = "/parked/{parked_id:str}"
_READ, _CHANGE = needs("read", agents="answer"), needs("admin", agents="answer")

CONNECT_SECONDS = 3.0
# A broker with a memory alarm accepts the connection and confirms nothing.
CONFIRM_SECONDS = 5.0
CLOSE_SECONDS = 1.0

log = structlog.get_logger(__name__)


class ParkedAnswer(BaseModel):
    """A message that could not be applied."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    message_id: UUID | None = Field(description="Null if the message had no readable id.")
    agent_name: str | None
    deployment_id: str | None
    reason: str = Field(description="Why it is parked: a stable word.")
    error: str = Field(description="Why it is parked: a sentence.")
    routing_key: str
    attempts: int = Field(description="How many messages were parked for this reason; this is the newest one.")
    received_at: datetime
    retried_at: datetime | None = Field(description="When it was last sent again.")


class ParkedMessageAnswer(ParkedAnswer):
    """A parked message with its headers and body."""

    headers: dict[str, Any]
    body: str
    body_encoding: Literal["utf-8", "base64"] = Field(description="base64 for a body that is not UTF-8 text.")

    @classmethod
    def of(cls, parked: Parked) -> Self:
        """The answer for a parked message."""
        brief = ParkedAnswer.model_validate(parked).model_dump()
        try:
            return cls(**brief, headers=parked.headers, body=parked.body.decode(), body_encoding="utf-8")
        except UnicodeDecodeError:
            body = b64encode(parked.body).decode()
            return cls(**brief, headers=parked.headers, body=body, body_encoding="base64")


class RetriedAnswer(BaseModel):
    """A parked message that was sent again."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    retry_message_id: UUID = Field(description="The message id of the retry: GET /registrations shows its outcome.")
    retried_at: datetime
    signed: bool = Field(description="Whether it was sent with a valid signature of its agent.")


@get("/parked", opt=_READ, operation_id="list_parked_messages", responses=documented())
async def read_parked(
    *,
    request: AnyRequest,
    resources: Injected,
    agent: AgentFilter = None,
    limit: Limit = 50,
    page_number: PageNumber = 1,
) -> list[ParkedAnswer]:
    """Messages that could not be applied, newest first; of one agent name, or of all."""
    name, identity = agent_filter(agent), identity_of(request)
    page = Page(limit=limit, number=page_number)
    found = await in_transaction(resources.reads, lambda session: list_parked(session, page, name, identity))
    return [ParkedAnswer.model_validate(each) for each in found]


@get(ITEM, opt=_READ, operation_id="get_parked_message", responses=documented(404))
async def read_parked_message(
    parked_id: FromPath[str], request: AnyRequest, resources: Injected
) -> ParkedMessageAnswer:
    """One parked message with its headers and its body."""
    uuid = parked_uuid(parked_id)
    return ParkedMessageAnswer.of(await found_parked(resources, uuid, request))


@post(
    f"{ITEM}/retry",
    opt=_CHANGE,
    status_code=200,
    dto=JsonBody[RetryRequest],
    return_dto=None,
    operation_class=OptionalBody,
    responses=documented(404, 409, 413, 415),
)
async def retry_parked_message(
    parked_id: FromPath[str],
    request: AnyRequest,
    resources: Injected,
    data: JSONBody[RetryRequest | None] = None,
) -> RetriedAnswer:
    """Send a parked message to the registrations exchange again, with a new message id. It stays parked until dropped.

    The answer is sent after the broker has confirmed the message. A message that fails again is parked again. After a
    503 the request can be repeated: the message is applied once. It is signed if it came with a valid signature, or if
    `accept_unsigned` is true; where signatures are required, another one gets 409.
    """
    accept_unsigned = data is not None and data.accept_unsigned
    return await send_again(resources, parked_uuid(parked_id), request, accept_unsigned=accept_unsigned)


async def send_again(
    resources: Resources, uuid: UUID, request: AnyRequest, *, accept_unsigned: bool = False
) -> RetriedAnswer:
    """Send the message again for this caller, and wait for the confirm.

    Raises `ParkedNotFound`, `NotRetryable`, `BrokerUnavailable`.
    """
    change = caller(request)
    parked = await found_parked(resources, uuid, request)
    message_id = retry_id(parked)
    envelope = retry_of(parked, message_id, resources.settings, accept_unsigned=accept_unsigned)
    signed = SIGNATURE_HEADER in envelope.headers
    await republish(resources.settings, envelope, str(message_id))
    log.info(
        "A parked message was sent again.",
        action="parked.retried",
        parked_id=str(uuid),
        message_id=str(message_id),
        signed=signed,
        accept_unsigned=accept_unsigned,
        actor=change.actor,
    )
    retried_at = await in_transaction(
        resources.sessions, lambda session: mark_retried(session, uuid, change, accept_unsigned=accept_unsigned)
    )
    return RetriedAnswer(id=uuid, retry_message_id=message_id, retried_at=retried_at, signed=signed)


@delete(ITEM, opt=_CHANGE, status_code=200, responses=documented(404))
async def drop_parked_message(parked_id: FromPath[str], request: AnyRequest, resources: Injected) -> DeletedAnswer:
    """Delete a parked message."""
    uuid = parked_uuid(parked_id)
    await drop(resources, uuid, request)
    return DeletedAnswer(id=str(uuid), message=f"The parked message {uuid} is dropped.")


async def drop(resources: Resources, uuid: UUID, request: AnyRequest) -> None:
    """Delete the message for this caller. Raises `ParkedNotFound`."""
    change = caller(request)
    await found_parked(resources, uuid, request)
    await in_transaction(resources.sessions, lambda session: drop_parked(session, uuid, change))
    log.info("A parked message was dropped.", action="parked.dropped", parked_id=str(uuid), actor=change.actor)


ROUTES = [read_parked, read_parked_message, retry_parked_message, drop_parked_message]


async def found_parked(resources: Resources, parked_id: UUID, request: AnyRequest) -> Parked:
    """The message. Raises `ParkedNotFound`, also if its agent is one that the caller does not see."""
    parked = await in_transaction(resources.reads, lambda session: get_parked(session, parked_id))
    if not identity_of(request).sees(parked.agent_name):
        raise ParkedNotFound
    return parked


async def republish(settings: Settings, envelope: Envelope, message_id: str) -> None:
    """Publish the message on a connection of its own, and wait for the confirm. Raises `BrokerUnavailable`."""
    url = broker_url(settings)
    if not url:
        raise BrokerUnavailable("The API has no broker configured: set PODIUM_AMQP_URL.")
    connection = Connection(URL(url))
    try:
        await _connect(connection)
        with lost_as(ConnectionError()):
            async with asyncio.timeout(CONFIRM_SECONDS):
                channel = await connection.channel(on_return_raises=True)
                exchange = await channel.get_exchange(REGISTRATIONS_EXCHANGE, ensure=False)
                await exchange.publish(_message(envelope, message_id), envelope.routing_key, mandatory=True)
    except PublishError as error:
        raise BrokerUnavailable("No queue receives this message: run 'podium migrate' to declare them.") from error
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
        problem = certificate_problem(error)
        raise BrokerUnavailable(f"The broker cannot be used: {problem}." if problem else None) from error


def _message(envelope: Envelope, message_id: str) -> Message:
    return Message(
        envelope.body,
        headers=envelope.headers,
        message_id=message_id,
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
    )
