"""Parked messages: what could not be applied is looked at, sent again, or dropped."""

import re
from base64 import b64encode
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import structlog
from litestar import delete, get, post
from litestar.params import FromPath, QueryParameter
from pydantic import BaseModel, ConfigDict, Field

from api.http.parameters import Limit, PageNumber
from api.http.problems import documented
from api.http.responses import DeletedAnswer
from api.resources import Injected
from api.routes.republishing import republish
from contracts.fields import AGENT_NAME_PATTERN
from services.errors import InvalidRequest, ParkedNotFound
from services.registration.parked import drop_parked, get_parked, list_parked, mark_retried, retry_id, sent_again
from services.storage.database import in_transaction
from services.storage.models import Parked
from services.storage.pages import Page

ITEM = "/parked/{parked_id:str}"

log = structlog.get_logger(__name__)

AgentNamed = Annotated[
    str | None, QueryParameter(description="Only messages for this name, which no agent needs to have.")
]


class ParkedAnswer(BaseModel):
    """A message that could not be applied."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    message_id: UUID | None = Field(description="Null if the message had none that could be read.")
    agent_name: str | None
    deployment_id: str | None
    reason: str = Field(description="The stable word for why it is parked.")
    error: str = Field(description="Why it is parked, in a sentence.")
    routing_key: str
    attempts: int = Field(description="Messages that were parked for this reason; this is the newest.")
    received_at: datetime
    retried_at: datetime | None = Field(description="When it was last sent again.")


class ParkedMessageAnswer(ParkedAnswer):
    """The same with all that was in it."""

    headers: dict[str, Any]
    body: str
    body_encoding: Literal["utf-8", "base64"] = Field(description="base64 for a body that is no text.")

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
    retry_message_id: UUID = Field(description="Under which it was sent: GET /registrations says what became of it.")
    retried_at: datetime


@get("/parked", responses=documented())
async def read_parked(
    *, resources: Injected, agent: AgentNamed = None, limit: Limit = 50, page_number: PageNumber = 1
) -> list[ParkedAnswer]:
    """Messages that could not be applied, newest first; of one name, or of all."""
    if agent is not None and not re.fullmatch(AGENT_NAME_PATTERN, agent):
        raise InvalidRequest("agent must be an agent's name: small letters, digits and hyphens.", field="agent")
    page = Page(limit=limit, number=page_number)
    found = await in_transaction(resources.reads, lambda session: list_parked(session, page, agent))
    return [ParkedAnswer.model_validate(each) for each in found]


@get(ITEM, responses=documented(404))
async def read_parked_message(parked_id: FromPath[str], resources: Injected) -> ParkedMessageAnswer:
    """One parked message with its headers and its body."""
    wanted = _parked_uuid(parked_id)
    return ParkedMessageAnswer.of(await in_transaction(resources.reads, lambda session: get_parked(session, wanted)))


@post(f"{ITEM}/retry", status_code=200, responses=documented(404, 409))
async def retry_parked_message(parked_id: FromPath[str], resources: Injected) -> RetriedAnswer:
    """Send a parked message through the front door again, under a new message id; it stays parked until it is dropped.

    Answered once the broker has it. What is refused again is parked again. After a 503 repeat it: it has one effect.
    """
    wanted = _parked_uuid(parked_id)
    parked = await in_transaction(resources.reads, lambda session: get_parked(session, wanted))
    message_id = retry_id(parked)
    await republish(resources.settings, sent_again(parked, message_id), str(message_id))
    log.info(
        "A parked message was sent again.", action="parked.retried", parked_id=str(wanted), message_id=str(message_id)
    )
    retried_at = await in_transaction(resources.sessions, lambda session: mark_retried(session, wanted))
    return RetriedAnswer(id=wanted, retry_message_id=message_id, retried_at=retried_at)


@delete(ITEM, status_code=200, responses=documented(404))
async def drop_parked_message(parked_id: FromPath[str], resources: Injected) -> DeletedAnswer:
    """Drop a parked message for good."""
    wanted = _parked_uuid(parked_id)
    await in_transaction(resources.sessions, lambda session: drop_parked(session, wanted))
    log.info("A parked message was dropped.", action="parked.dropped", parked_id=str(wanted), actor=resources.actor)
    return DeletedAnswer(id=str(wanted), message=f"The parked message {wanted} is dropped.")


def _parked_uuid(text: str) -> UUID:
    """The id in a path. Raises `ParkedNotFound` for anything that could not be one."""
    try:
        found = UUID(text)
    except ValueError as exc:
        raise ParkedNotFound from exc
    if str(found) != text.lower():
        raise ParkedNotFound
    return found


ROUTES = [read_parked, read_parked_message, retry_parked_message, drop_parked_message]
