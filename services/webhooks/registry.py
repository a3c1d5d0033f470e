"""Creating, listing, changing and deleting webhooks. A secret is returned once. Every change is in the audit log."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Select, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.caller import Caller
from services.domain.identity import Identity
from services.errors import AgentNotFound, AllAgentsNeeded, InvalidRequest, TooManyWebhooks, WebhookNotFound
from services.events.log import Position, cursor_of
from services.identities.audit import record
from services.identities.visibility import visible
from services.storage.models import Agent, Webhook, WebhookDelivery, WebhookPosition
from services.storage.pages import Page
from services.webhooks.filters import KNOWN_TYPES, unknown_types
from services.webhooks.positions import NOW, Lag, cursor_at, go_back, lag_of, raw_position
from services.webhooks.signing import new_secret

# Without those of deleted agents. Two callers at once can exceed it by some.
MOST_WEBHOOKS = 1000

_COUNT = (
    select(func.count())
    .select_from(Webhook)
    .outerjoin(Agent, Agent.id == Webhook.agent_id)
    .where(Agent.deleted_at.is_(None))
)
# Each takes its attempts with it, `DELIVERIES_KEPT` at most, so it counts as a hundred rows.
_REMOVE = text("""
WITH removed AS (
    DELETE FROM webhooks WHERE id IN (
        SELECT w.id FROM webhooks AS w JOIN agents AS a ON a.id = w.agent_id
        WHERE a.deleted_at < :before ORDER BY w.id
        LIMIT greatest(CAST(:limit AS int) / 100, 1) FOR UPDATE OF w SKIP LOCKED
    ) RETURNING 1
)
SELECT count(*) FROM removed
""")
_WAKE = text("UPDATE webhook_positions SET due_at = clock_timestamp(), claim = NULL WHERE webhook_id = :id")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWebhook:
    """What a webhook gets: the events of these types (exact, or prefixes that end with a dot), of one agent or all."""

    url: str = field(repr=False)
    agent_name: str | None = None
    event_types: tuple[str, ...] | None = None
    description: str | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class WebhookView:
    """A webhook and what waits for it."""

    webhook: Webhook
    lag: Lag


async def create_webhook(session: AsyncSession, new: NewWebhook, identity: Identity, caller: Caller) -> Webhook:
    """Create a webhook with a new secret; it gets the events of changes that commit from now on.

    While a transaction is open on the database server, also those that committed since it began.
    Raises `AgentNotFound`, `AllAgentsNeeded` for one of all agents, `InvalidRequest` and `TooManyWebhooks`.
    """
    if new.agent_name is None and identity.agents is not None:
        raise AllAgentsNeeded
    if unknown := unknown_types(new.event_types or ()):
        known = ", ".join(KNOWN_TYPES)
        message = f"event_types must be types or prefixes that end with a dot, of {known}; {unknown[0]!r} matches none."
        raise InvalidRequest(message, field="event_types")
    agent_id = None if new.agent_name is None else await _living(session, new.agent_name, identity)
    if (await session.execute(_COUNT)).scalar_one() >= MOST_WEBHOOKS:
        raise TooManyWebhooks
    xid, id_ = (await session.execute(NOW)).one()
    webhook = Webhook(
        url=new.url,
        description=new.description,
        owner=new.owner,
        agent_id=agent_id,
        agent_name=new.agent_name,
        event_types=None if new.event_types is None else sorted(set(new.event_types)),
        secret=new_secret(),
        cursor_xid=xid,
        cursor_id=id_,
        created_by=caller.actor,
    )
    session.add(webhook)
    await session.flush()
    await session.refresh(webhook)
    details: dict[str, object] = {"owner": webhook.owner, "event_types": webhook.event_types}
    await _record(session, caller, "webhook.created", webhook, details)
    return webhook


async def list_webhooks(
    session: AsyncSession, identity: Identity, page: Page, *, agent_name: str | None = None
) -> Sequence[WebhookView]:
    """The webhooks that the identity sees, oldest first: those of one agent name, or all."""
    query = select(Webhook).where(visible(Webhook.agent_name, identity)).order_by(Webhook.created_at, Webhook.id)
    if agent_name is not None:
        query = query.where(Webhook.agent_name == agent_name)
    found = (await session.scalars(query.limit(page.limit).offset(page.offset))).all()
    lags = await lag_of(session, [each.id for each in found])
    return [WebhookView(each, lags.get(each.id, Lag())) for each in found]


async def get_webhook(session: AsyncSession, webhook_id: UUID, identity: Identity) -> WebhookView:
    """The webhook. Raises `WebhookNotFound`, also for one that the identity does not see."""
    webhook = await _found(session, _one(webhook_id, identity))
    lags = await lag_of(session, [webhook_id])
    return WebhookView(webhook, lags.get(webhook_id, Lag()))


async def list_deliveries(
    session: AsyncSession, webhook_id: UUID, identity: Identity, *, limit: int, before: int | None = None
) -> Sequence[WebhookDelivery]:
    """The last attempts, newest first. Raises `WebhookNotFound`."""
    await _found(session, _one(webhook_id, identity))
    query = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)
    if before is not None:
        query = query.where(WebhookDelivery.id < before)
    return (await session.scalars(query.order_by(WebhookDelivery.id.desc()).limit(limit))).all()


async def delete_webhook(session: AsyncSession, webhook_id: UUID, identity: Identity, caller: Caller) -> Webhook:
    """Delete the webhook with its positions and attempts. A delivery under way may still arrive."""
    webhook = await _locked(session, webhook_id, identity)
    await _record(session, caller, "webhook.deleted", webhook)
    await session.execute(delete(Webhook).where(Webhook.id == webhook_id))
    session.expunge(webhook)
    return webhook


async def remove_of_deleted(session: AsyncSession, before: datetime, limit: int) -> int:
    """Remove webhooks of agents that were deleted before `before`, of each hundred of `limit` one; returns how many.

    What they have not delivered by then, they never will.
    """
    return int(await session.scalar(_REMOVE, {"before": before, "limit": limit}) or 0)


async def rotate_secret(
    session: AsyncSession, webhook_id: UUID, identity: Identity, caller: Caller, *, overlap: timedelta
) -> Webhook:
    """Give the webhook a new secret; deliveries are signed with the one before too, for `overlap`."""
    webhook = await _locked(session, webhook_id, identity)
    now = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    webhook.previous_secret = webhook.secret if overlap else None
    webhook.previous_until = now + overlap if overlap else None
    webhook.secret, webhook.rotated_at = new_secret(), now
    await session.flush()
    await _record(session, caller, "webhook.rotated", webhook, {"overlap_seconds": overlap.total_seconds()})
    return webhook


async def pause_webhook(session: AsyncSession, webhook_id: UUID, identity: Identity, caller: Caller) -> Webhook:
    """Send it nothing until it is resumed; a delivery under way may still arrive. Idempotent; ends a disabling."""
    webhook = await _locked(session, webhook_id, identity)
    if webhook.status != "paused":
        await _set_status(session, webhook, "paused")
        await _record(session, caller, "webhook.paused", webhook)
    return webhook


async def resume_webhook(
    session: AsyncSession, webhook_id: UUID, identity: Identity, caller: Caller, *, start: Position | None = None
) -> Webhook:
    """Send events again, at once: from where it was, or those after `start` alone.

    With `start`, what waits is dropped, and events after it that were accepted before are sent again. Raises
    `EventsRemoved` and `InvalidRequest` for such a position.
    """
    webhook = await _locked(session, webhook_id, identity)
    if start is not None:
        await session.execute(delete(WebhookPosition).where(WebhookPosition.webhook_id == webhook_id))
        webhook.cursor_xid, webhook.cursor_id = await raw_position(session, start)
    await _set_status(session, webhook, "active")
    await session.execute(_WAKE, {"id": webhook_id})
    details: dict[str, object] = {} if start is None else {"cursor": cursor_of(start)}
    await _record(session, caller, "webhook.resumed", webhook, details)
    return webhook


async def replay(
    session: AsyncSession, webhook_id: UUID, identity: Identity, caller: Caller, *, since: datetime | Position
) -> Webhook:
    """Send the events since a time or after a position again, each agent's in order, and then those that follow.

    What waits is sent too. A webhook that is paused or disabled gets them once it is resumed. A time before the oldest
    stored event means all of them. Raises `EventsRemoved` for a position before removed events, and `InvalidRequest`
    for one after the newest.
    """
    await _found(session, _one(webhook_id, identity))
    # Before the lock, which results of deliveries wait for.
    if isinstance(since, datetime):
        start = await cursor_at(session, since)
        details: dict[str, object] = {"since": since.isoformat()}
    else:
        start = await raw_position(session, since)
        details = {"cursor": cursor_of(since)}
    webhook = await _locked(session, webhook_id, identity)
    await session.execute(_WAKE, {"id": webhook_id})
    if start is not None and start < (webhook.cursor_xid, webhook.cursor_id):
        await go_back(session, webhook, start)
    await _record(session, caller, "webhook.replayed", webhook, details)
    return webhook


async def _set_status(session: AsyncSession, webhook: Webhook, status: str) -> None:
    webhook.status, webhook.status_reason, webhook.failing_since = status, None, None
    webhook.status_changed_at = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    await session.flush()


async def _living(session: AsyncSession, name: str, identity: Identity) -> UUID:
    found = await session.scalar(select(Agent.id).where(Agent.name == name, Agent.deleted_at.is_(None)))
    if found is None or not identity.sees(name):
        raise AgentNotFound
    return found


def _one(webhook_id: UUID, identity: Identity) -> Select[Webhook]:
    return select(Webhook).where(Webhook.id == webhook_id, visible(Webhook.agent_name, identity))


async def _found(session: AsyncSession, query: Select[Webhook]) -> Webhook:
    webhook = await session.scalar(query)
    if webhook is None:
        raise WebhookNotFound
    return webhook


async def _locked(session: AsyncSession, webhook_id: UUID, identity: Identity) -> Webhook:
    query = _one(webhook_id, identity).with_for_update().execution_options(populate_existing=True)
    return await _found(session, query)


async def _record(
    session: AsyncSession, caller: Caller, action: str, webhook: Webhook, details: dict[str, object] | None = None
) -> None:
    await record(session, caller, action, str(webhook.id), agent_name=webhook.agent_name, details=details)
