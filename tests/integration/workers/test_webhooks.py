"""Deliveries of webhooks: order, retries, and what a receiver in trouble does to others."""

import asyncio
from datetime import timedelta
from ipaddress import IPv4Network
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from services.domain.caller import Caller
from services.domain.identity import EVERYBODY
from services.registration.batch import register_batch
from services.settings import Settings
from services.storage.database import Sessions, in_transaction
from services.storage.models import Webhook
from services.webhooks import registry
from services.webhooks.registry import NewWebhook
from services.webhooks.signing import shown
from tests.integration.workers.conftest import working
from tests.support.factories import incoming
from tests.support.receivers import running_receiver
from tests.support.waiting import rows
from workers.runner import run_webhooks

AMY = Caller(actor="amy")


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Settings that allow local receivers, with short times."""
    return settings.model_copy(
        update={
            "webhook_dial_networks": (IPv4Network("127.0.0.0/8"),),
            "webhook_timeout": timedelta(seconds=1),
            "webhook_first_retry": timedelta(milliseconds=50),
            "webhook_longest_retry": timedelta(milliseconds=200),
            "webhook_poll": timedelta(milliseconds=50),
        }
    )


async def happen(sessions: Sessions, name: str, *versions: str) -> None:
    """Announce versions of an agent, in one transaction each: two events, and two more for the first one."""
    for version in versions:
        message = incoming(name, deployment_id=f"{name}-{version}")
        await in_transaction(sessions, lambda session, message=message: register_batch(session, [message]))  # type: ignore[misc]


async def a_webhook(sessions: Sessions, url: str, **fields: Any) -> Webhook:
    """A new webhook."""
    new = NewWebhook(url=url, **fields)
    return await in_transaction(sessions, lambda session: registry.create_webhook(session, new, EVERYBODY, AMY))


async def state_of(sessions: Sessions, webhook_id: UUID) -> Any:
    """The row of the webhook."""
    (row,) = await rows(sessions, "SELECT * FROM webhooks WHERE id = :id", id=webhook_id)
    return row


async def test_events_arrive_signed_and_in_order(quick: Settings, sessions: Sessions) -> None:
    """G100: each agent's events, in sequence order, as CloudEvents with a signature that others verify."""
    async with running_receiver() as receiver:
        webhook = await a_webhook(sessions, receiver.url)
        async with working(run_webhooks, quick):
            await asyncio.gather(*(happen(sessions, f"bot-{n}", "v1", "v2") for n in range(5)))
            await asyncio.gather(*(receiver.until(f"bot-{n}", 6) for n in range(5)))
    for n in range(5):
        assert receiver.sequences(f"bot-{n}") == [1, 2, 3, 4, 5, 6]
    verifier = Verifier(shown(webhook.secret))
    stored = {str(row.event_id): row for row in await rows(sessions, "SELECT * FROM outbox")}
    for received in receiver.seen:
        event = verifier.verify(received.body, received.headers)
        assert received.headers["content-type"] == "application/cloudevents+json"
        assert received.headers["webhook-id"] == event["id"]
        assert stored[event["id"]].payload == event["data"]
    with pytest.raises(WebhookVerificationError):
        verifier.verify(receiver.seen[0].body + b" ", receiver.seen[0].headers)
