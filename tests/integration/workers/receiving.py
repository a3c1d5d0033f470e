"""What tests of webhooks share: webhooks, and events for them."""

from typing import Any

from services.domain.caller import Caller
from services.domain.identity import EVERYBODY
from services.registration.batch import register_batch
from services.storage.database import Sessions, in_transaction
from services.storage.models import Webhook
from services.webhooks.registry import NewWebhook, create_webhook
from tests.support.factories import incoming
from tests.support.waiting import eventually, rows

AMY = Caller(actor="amy")


async def happen(sessions: Sessions, name: str, *versions: str) -> None:
    """Announce versions of an agent, in one transaction each: two events, and two more for the first one."""
    for version in versions:
        message = incoming(name, deployment_id=f"{name}-{version}")
        await in_transaction(sessions, lambda session, message=message: register_batch(session, [message]))  # type: ignore[misc]


async def a_webhook(sessions: Sessions, url: str, **fields: Any) -> Webhook:
    """A new webhook."""
    new = NewWebhook(url=url, **fields)
    return await in_transaction(sessions, lambda session: create_webhook(session, new, EVERYBODY, AMY))


async def nothing_waits(sessions: Sessions) -> None:
    """Return once no event waits for a webhook."""

    async def none() -> bool:
        return not await rows(sessions, "SELECT 1 FROM webhook_positions")

    await eventually(none, "nothing waits")
