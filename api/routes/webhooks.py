"""Webhooks: who gets events by HTTP. A secret is in the answer that makes it, and nowhere else."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self
from uuid import UUID, uuid4

from litestar import delete, get, post
from litestar.params import FromPath, JSONBody
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.access import needs
from api.http.parameters import (
    AgentFilter,
    AnyRequest,
    Limit,
    PageNumber,
    agent_filter,
    caller,
    identity_of,
    webhook_uuid,
)
from api.http.problems import documented
from api.http.requests import JsonBody
from api.http.responses import DeletedAnswer
from api.resources import Injected, Resources
from api.routes.audit import Before, entry_id
from contracts.fields import AgentName, Moment, ReceiverUrl, Text
from services.domain.identity import Identity
from services.errors import InvalidRequest
from services.events.log import Position, event_cursor, parse_cursor
from services.storage.database import in_transaction
from services.storage.models import Webhook
from services.storage.pages import Page
from services.webhooks.positions import MOST_COUNTED
from services.webhooks.registry import (
    NewWebhook,
    WebhookView,
    create_webhook,
    delete_webhook,
    get_webhook,
    list_deliveries,
    list_webhooks,
    pause_webhook,
    replay,
    resume_webhook,
    rotate_secret,
)
from services.webhooks.sender import Outcome
from services.webhooks.signing import shown
from services.webhooks.trial import trial_of

ITEM = "/webhooks/{webhook_id:str}"
NOW = "now"
MOST_TYPES = 50
LONGEST_OVERLAP = timedelta(days=30)
SHORT = StringConstraints(max_length=200)

_RULE = needs("admin", agents="answer")
_Type = Annotated[str, StringConstraints(pattern=r"^podium(\.[a-z0-9-]+)*\.?$", max_length=100)]
_CURSOR = r"^[0-9]{1,20}\.[0-9]{1,20}$"
_Cursor = Annotated[str, StringConstraints(pattern=_CURSOR)]


class NewWebhookRequest(BaseModel):
    """A new webhook."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: ReceiverUrl = Field(description="Where events are sent by POST: http or https, without user or fragment.")
    agent: AgentName | None = Field(default=None, description="The name of the agent; null: all agents.")
    event_types: Annotated[list[_Type], Field(min_length=1, max_length=MOST_TYPES)] | None = Field(
        default=None,
        description="Types of events, or prefixes that end with a dot, such as 'podium.deployment.'; null: all.",
    )
    description: Annotated[Text, SHORT] | None = Field(default=None, description="What it is for.")
    owner: Annotated[Text, SHORT] | None = Field(default=None, description="Whom to ask about it.")

    def command(self) -> NewWebhook:
        """The service command for this request."""
        return NewWebhook(
            url=self.url,
            agent_name=self.agent,
            event_types=None if self.event_types is None else tuple(self.event_types),
            description=self.description,
            owner=self.owner,
        )


class RotateWebhookRequest(BaseModel):
    """How long deliveries are also signed with the secret before the new one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    overlap_seconds: Annotated[float, Field(strict=True, ge=0, le=LONGEST_OVERLAP.total_seconds())] = Field(
        default=0, description="0: it ends at once."
    )


class ResumeWebhookRequest(BaseModel):
    """Where to go on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cursor: _Cursor | Literal["now"] | None = Field(
        default=None,
        description="Only the events after this cursor of GET /events, or 'now' for those to come; null: where it was.",
    )


class ReplayWebhookRequest(BaseModel):
    """What to send again: the events since a time, or after a cursor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: Moment | None = Field(default=None, description="Events of this time and later.")
    cursor: _Cursor | None = Field(default=None, description="Events after this cursor of GET /events.")

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.since is None) == (self.cursor is None):
            raise ValueError("give either since or cursor")
        return self


class WebhookAnswer(BaseModel):
    """A webhook, without its secret."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    url: str
    agent_id: UUID | None = Field(description="Null: all agents.")
    agent_name: str | None
    event_types: list[str] | None = Field(description="Types, or prefixes that end with a dot; null: all.")
    description: str | None
    owner: str | None
    status: Literal["active", "paused", "disabled"]
    status_reason: str | None = Field(description="Why it is disabled: 'gone' (410) or 'failing' for too long.")
    status_changed_at: datetime
    failing_since: datetime | None = Field(description="Since when its receiver has accepted nothing that was sent.")
    missed: int = Field(description="Events that retention removed before they were accepted.")
    created_at: datetime
    created_by: str
    rotated_at: datetime | None
    previous_until: datetime | None = Field(description="Until when deliveries are also signed with the secret before.")
    waiting_agents: int = Field(
        default=0, description=f"Agents with events that were not accepted yet; at most {MOST_COUNTED} are counted."
    )
    waiting_since: datetime | None = Field(default=None, description="Time of the oldest event of these agents.")
    ended: bool = Field(default=False, description="Whether its agent is deleted: no new events come.")

    @classmethod
    def of(cls, view: WebhookView) -> Self:
        """The answer for a webhook and its lag."""
        return cls(**_columns(view.webhook), **asdict(view.lag))


class IssuedWebhookAnswer(WebhookAnswer):
    """A webhook with its secret."""

    secret: str = Field(repr=False, description="For the verification of signatures. It cannot be read again.")

    @classmethod
    def with_secret(cls, webhook: Webhook) -> Self:
        """The answer for a new secret."""
        return cls(**_columns(webhook), secret=shown(webhook.secret))


class DeliveryAnswer(BaseModel):
    """One attempt to deliver an event."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: int
    at: datetime
    event_id: UUID
    event_type: str
    agent_id: UUID
    agent_name: str
    sequence: int
    attempt: int = Field(description="1 for the first one.")
    outcome: Outcome = Field(description="'accepted' (2xx), 'refused' (another status), 'failed' (none), 'denied'.")
    status: int | None
    detail: str = Field(description="The beginning of the answer's body, or why there is no answer.")
    seconds: float = Field(description="Until the head of the answer.")


class TrialAnswer(BaseModel):
    """What the receiver said to a test event."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    outcome: Outcome
    status: int | None
    detail: str
    seconds: float


@post(
    "/webhooks",
    status_code=200,
    opt=_RULE,
    dto=JsonBody[NewWebhookRequest],
    return_dto=None,
    operation_id="create_webhook",
    responses=documented(404, 409, 413, 415),
)
async def create(data: JSONBody[NewWebhookRequest], request: AnyRequest, resources: Injected) -> IssuedWebhookAnswer:
    """Create a webhook, which gets the events of changes from now on. Its secret is in this answer only."""
    change, identity = caller(request), identity_of(request)
    webhook = await in_transaction(
        resources.sessions, lambda session: create_webhook(session, data.command(), identity, change)
    )
    return IssuedWebhookAnswer.with_secret(webhook)


@get("/webhooks", opt=_RULE, operation_id="list_webhooks", responses=documented())
async def read_webhooks(
    *,
    request: AnyRequest,
    resources: Injected,
    agent: AgentFilter = None,
    limit: Limit = 50,
    page_number: PageNumber = 1,
) -> list[WebhookAnswer]:
    """The webhooks that the caller sees, oldest first, without their secrets."""
    page, name, identity = Page(limit=limit, number=page_number), agent_filter(agent), identity_of(request)
    found = await in_transaction(
        resources.reads, lambda session: list_webhooks(session, identity, page, agent_name=name)
    )
    return [WebhookAnswer.of(each) for each in found]


@get(ITEM, opt=_RULE, operation_id="get_webhook", responses=documented(404))
async def read_webhook(webhook_id: FromPath[str], request: AnyRequest, resources: Injected) -> WebhookAnswer:
    """A webhook, without its secret."""
    uuid, identity = webhook_uuid(webhook_id), identity_of(request)
    return WebhookAnswer.of(await in_transaction(resources.reads, lambda session: get_webhook(session, uuid, identity)))


@get(f"{ITEM}/deliveries", opt=_RULE, operation_id="list_deliveries", responses=documented(404))
async def read_deliveries(
    webhook_id: FromPath[str], *, request: AnyRequest, resources: Injected, limit: Limit = 50, before: Before = None
) -> list[DeliveryAnswer]:
    """The last attempts to deliver events, newest first."""
    uuid, identity, first = webhook_uuid(webhook_id), identity_of(request), entry_id(before)
    found = await in_transaction(
        resources.reads, lambda session: list_deliveries(session, uuid, identity, limit=limit, before=first)
    )
    return [DeliveryAnswer.model_validate(each) for each in found]


@delete(ITEM, status_code=200, opt=_RULE, operation_id="delete_webhook", responses=documented(404))
async def remove(webhook_id: FromPath[str], request: AnyRequest, resources: Injected) -> DeletedAnswer:
    """Delete a webhook. A delivery that is under way may still arrive."""
    uuid, identity, change = webhook_uuid(webhook_id), identity_of(request), caller(request)
    await in_transaction(resources.sessions, lambda session: delete_webhook(session, uuid, identity, change))
    return DeletedAnswer(id=str(uuid), message=f"Webhook {uuid} is deleted.")


@post(f"{ITEM}/pause", status_code=200, opt=_RULE, operation_id="pause_webhook", responses=documented(404))
async def pause(webhook_id: FromPath[str], request: AnyRequest, resources: Injected) -> WebhookAnswer:
    """Send no events until the webhook is resumed. Idempotent."""
    uuid, identity, change = webhook_uuid(webhook_id), identity_of(request), caller(request)
    return await _changed(resources, uuid, identity, lambda session: pause_webhook(session, uuid, identity, change))


@post(
    f"{ITEM}/resume",
    status_code=200,
    opt=_RULE,
    dto=JsonBody[ResumeWebhookRequest],
    return_dto=None,
    operation_id="resume_webhook",
    responses=documented(404, 410, 413, 415),
)
async def resume(
    webhook_id: FromPath[str], data: JSONBody[ResumeWebhookRequest], request: AnyRequest, resources: Injected
) -> WebhookAnswer:
    """Send events again, where the webhook was or from a cursor. Also ends that it is disabled."""
    uuid, identity, change = webhook_uuid(webhook_id), identity_of(request), caller(request)

    async def work(session: AsyncSession) -> None:
        cursor = await event_cursor(session) if data.cursor == NOW else data.cursor
        start = None if cursor is None else _position(cursor)
        await resume_webhook(session, uuid, identity, change, start=start)

    return await _changed(resources, uuid, identity, work)


@post(
    f"{ITEM}/replay",
    status_code=200,
    opt=_RULE,
    dto=JsonBody[ReplayWebhookRequest],
    return_dto=None,
    operation_id="replay_webhook",
    responses=documented(404, 410, 413, 415),
)
async def send_again(
    webhook_id: FromPath[str], data: JSONBody[ReplayWebhookRequest], request: AnyRequest, resources: Injected
) -> WebhookAnswer:
    """Send stored events again, each agent's in order, and then those that follow.

    A webhook that is paused or disabled gets them once it is resumed: see `status` in the answer.
    """
    uuid, identity, change = webhook_uuid(webhook_id), identity_of(request), caller(request)
    since = _position(data.cursor) if data.cursor is not None else data.since
    assert since is not None
    return await _changed(
        resources, uuid, identity, lambda session: replay(session, uuid, identity, change, since=since)
    )


@post(
    f"{ITEM}/rotate",
    status_code=200,
    opt=_RULE,
    dto=JsonBody[RotateWebhookRequest],
    return_dto=None,
    operation_id="rotate_webhook",
    responses=documented(404, 413, 415),
)
async def rotate(
    webhook_id: FromPath[str], data: JSONBody[RotateWebhookRequest], request: AnyRequest, resources: Injected
) -> IssuedWebhookAnswer:
    """Give a webhook a new secret. Deliveries are signed with both for the overlap."""
    uuid, identity, change = webhook_uuid(webhook_id), identity_of(request), caller(request)
    overlap = timedelta(seconds=data.overlap_seconds)
    webhook = await in_transaction(
        resources.sessions, lambda session: rotate_secret(session, uuid, identity, change, overlap=overlap)
    )
    return IssuedWebhookAnswer.with_secret(webhook)


@post(f"{ITEM}/test", status_code=200, opt=_RULE, operation_id="test_webhook", responses=documented(404))
async def send_test(webhook_id: FromPath[str], request: AnyRequest, resources: Injected) -> TrialAnswer:
    """Send a test event now, from this process, and answer what the receiver said. It is not repeated."""
    uuid, identity, change = webhook_uuid(webhook_id), identity_of(request), caller(request)
    delivery = await in_transaction(
        resources.sessions, lambda session: trial_of(session, uuid, identity, change, event_id=uuid4())
    )
    return TrialAnswer.model_validate(await resources.webhooks.send(delivery))


async def _changed(
    resources: Resources, webhook_id: UUID, identity: Identity, change: Callable[[AsyncSession], Awaitable[object]]
) -> WebhookAnswer:
    """The webhook after a change, read in its transaction."""

    async def work(session: AsyncSession) -> WebhookView:
        await change(session)
        return await get_webhook(session, webhook_id, identity)

    return WebhookAnswer.of(await in_transaction(resources.sessions, work))


def _columns(webhook: Webhook) -> dict[str, Any]:
    """What the answers have of the stored webhook: never its secrets."""
    return {name: getattr(webhook, name) for name in WebhookAnswer.model_fields if hasattr(webhook, name)}


def _position(cursor: str) -> Position:
    try:
        return parse_cursor(cursor, None)
    except ValueError as exc:
        raise InvalidRequest("cursor must be the id of an event, such as 4711.42.", field="cursor") from exc


REQUESTS: tuple[type[BaseModel], ...] = (
    NewWebhookRequest,
    ReplayWebhookRequest,
    ResumeWebhookRequest,
    RotateWebhookRequest,
)
ANSWERS: tuple[type[BaseModel], ...] = (DeliveryAnswer, IssuedWebhookAnswer, TrialAnswer, WebhookAnswer)
ROUTES = [
    create,
    read_webhooks,
    read_webhook,
    read_deliveries,
    remove,
    pause,
    resume,
    send_again,
    rotate,
    send_test,
]
