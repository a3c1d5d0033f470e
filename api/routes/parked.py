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
from litestar.params import FromPath
from pydantic import BaseModel, ConfigDict, Field
from yarl import URL

from api.http.parameters import AgentFilter, Limit, PageNumber, agent_filter, parked_uuid
from api.http.problems import documented
from api.http.responses import DeletedAnswer
from api.resources import Injected, Resources
from contracts.topology import REGISTRATIONS_EXCHANGE
from services.cancellation import lost_as
from services.errors import BrokerUnavailable
from services.registration.parked import (
    Envelope,
    drop_parked,
    get_parked,
    list_parked,
    mark_retried,
    retry_id,
    sent_again,
)
from services.settings import Settings
from services.storage.database import in_transaction
from services.storage.models import Parked
from services.storage.pages import Page

ITEM = "/parked/{parked_id:str}"

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


@get("/parked", operation_id="list_parked_messages", responses=documented())
async def read_parked(
    *, resources: Injected, agent: AgentFilter = None, limit: Limit = 50, page_number: PageNumber = 1
) -> list[ParkedAnswer]:
    """Messages that could not be applied, newest first; of one agent name, or of all."""
    name = agent_filter(agent)
    page = Page(limit=limit, number=page_number)
    found = await in_transaction(resources.reads, lambda session: list_parked(session, page, name))
    return [ParkedAnswer.model_validate(each) for each in found]


@get(ITEM, operation_id="get_parked_message", responses=documented(404))
async def read_parked_message(parked_id: FromPath[str], resources: Injected) -> ParkedMessageAnswer:
    """One parked message with its headers and its body."""
    uuid = parked_uuid(parked_id)
    return ParkedMessageAnswer.of(await in_transaction(resources.reads, lambda session: get_parked(session, uuid)))


@post(f"{ITEM}/retry", status_code=200, responses=documented(404, 409))
async def retry_parked_message(parked_id: FromPath[str], resources: Injected) -> RetriedAnswer:
    """Send a parked message to the registrations exchange again, with a new message id. It stays parked until dropped.

    The answer is sent after the broker has confirmed the message. A message that fails again is parked again. After a
    503 the request can be repeated: the message is applied once.
    """
    return await send_again(resources, parked_uuid(parked_id))


async def send_again(resources: Resources, uuid: UUID) -> RetriedAnswer:
    """Send the message again, and wait for the confirm.

    Raises `ParkedNotFound`, `NotRetryable`, `BrokerUnavailable`.
    """
    parked = await in_transaction(resources.reads, lambda session: get_parked(session, uuid))
    message_id = retry_id(parked)
    await republish(resources.settings, sent_again(parked, message_id), str(message_id))
    log.info(
        "A parked message was sent again.", action="parked.retried", parked_id=str(uuid), message_id=str(message_id)
    )
    retried_at = await in_transaction(resources.sessions, lambda session: mark_retried(session, uuid))
    return RetriedAnswer(id=uuid, retry_message_id=message_id, retried_at=retried_at)


@delete(ITEM, status_code=200, responses=documented(404))
async def drop_parked_message(parked_id: FromPath[str], resources: Injected) -> DeletedAnswer:
    """Delete a parked message."""
    uuid = parked_uuid(parked_id)
    await drop(resources, uuid, resources.actor)
    return DeletedAnswer(id=str(uuid), message=f"The parked message {uuid} is dropped.")


async def drop(resources: Resources, uuid: UUID, actor: str) -> None:
    """Delete the message, and say so in the log. Raises `ParkedNotFound`."""
    await in_transaction(resources.sessions, lambda session: drop_parked(session, uuid))
    log.info("A parked message was dropped.", action="parked.dropped", parked_id=str(uuid), actor=actor)


ROUTES = [read_parked, read_parked_message, retry_parked_message, drop_parked_message]


async def republish(settings: Settings, envelope: Envelope, message_id: str) -> None:
    """Publish the message on a connection of its own, and wait for the confirm. Raises `BrokerUnavailable`."""
    url = settings.amqp_url.get_secret_value()
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
        raise BrokerUnavailable from error


def _message(envelope: Envelope, message_id: str) -> Message:
    return Message(
        envelope.body,
        headers=envelope.headers,
        message_id=message_id,
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
    )
