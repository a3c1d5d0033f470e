"""A test event, which is sent once and stored nowhere."""

from datetime import datetime
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.events import event_sequence
from services.domain.caller import Caller
from services.domain.identity import Identity
from services.identities.audit import record
from services.storage.models import Webhook
from services.webhooks.registry import get_webhook
from services.webhooks.sender import Delivery

TEST_TYPE = "podium.webhook.test.v1"


async def trial_of(
    session: AsyncSession, webhook_id: UUID, identity: Identity, caller: Caller, *, event_id: UUID
) -> Delivery:
    """The delivery of a test event, signed as all others. Raises `WebhookNotFound`."""
    webhook = (await get_webhook(session, webhook_id, identity)).webhook
    now = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    await record(session, caller, "webhook.tested", str(webhook_id), agent_name=webhook.agent_name)
    overlaps = (
        webhook.previous_secret is not None and webhook.previous_until is not None and webhook.previous_until > now
    )
    secrets = (webhook.secret, webhook.previous_secret) if overlaps else (webhook.secret,)
    body = to_json(_event(webhook, event_id, now))
    return Delivery(webhook.url, str(event_id), body, tuple(each for each in secrets if each is not None))


def _event(webhook: Webhook, event_id: UUID, now: datetime) -> dict[str, object]:
    """A CloudEvent like all others, but of the webhook and not of an agent."""
    return {
        "specversion": "1.0",
        "id": str(event_id),
        "source": f"/podium/webhooks/{webhook.id}",
        "type": TEST_TYPE,
        "subject": str(webhook.id),
        "time": now.isoformat(),
        "datacontenttype": "application/json",
        "sequence": event_sequence(0),
        "generation": 0,
        "agentname": webhook.agent_name or "",
        "data": {"webhook_id": str(webhook.id)},
    }
