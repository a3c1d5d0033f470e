"""Workers that require signed announcements: PODIUM_REQUIRE_SIGNED_ANNOUNCEMENTS."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection
from pydantic import SecretStr
from pydantic_core import to_json

from contracts.signatures import SIGNATURE_HEADER
from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.workers.conftest import working
from tests.support.broker import publish
from tests.support.factories import a_body
from tests.support.signing import publish_signed, signature_headers
from tests.support.waiting import eventually_rows, rows
from workers.registrar.consumer import StartRefused
from workers.runner import run_registrar, run_workers


@pytest_asyncio.fixture
async def strict(settings: Settings, broker: object) -> AsyncIterator[Settings]:  # noqa: ARG001 - declares the queue
    """The settings of a registrar that requires signatures and runs while the test does."""
    strict = settings.model_copy(update={"require_signed_announcements": True})
    async with working(run_registrar, strict):
        yield strict


def a_goodbye_body() -> dict[str, Any]:
    """The goodbye of the first instance of `bot`."""
    return {**a_body("bot"), "kind": "deregister", "deployment_id": "v1", "instance_id": "pod-1"}


async def test_signed_messages_are_applied(broker: AbstractConnection, sessions: Sessions, strict: Settings) -> None:
    """G78: An announcement and a goodbye that are signed with their agent's key are applied."""
    await publish_signed(broker, strict, a_body("bot", deployment_id="v1", instance_id="pod-1"))
    await publish_signed(broker, strict, a_goodbye_body())
    outcomes = await eventually_rows(sessions, "SELECT outcome FROM registrations ORDER BY seq", 2)
    assert [row.outcome for row in outcomes] == ["Registered", "Departed"]


async def test_messages_without_a_valid_signature_are_parked(
    broker: AbstractConnection, sessions: Sessions, strict: Settings
) -> None:
    """G78: A message that nobody, another agent or a guess has signed changes nothing, and is parked as such."""
    body, goodbye = a_body("bot", deployment_id="v1", instance_id="pod-1"), a_goodbye_body()
    signed = signature_headers(strict, "bot", body)
    another_id = {**body, "message_id": str(uuid4())}
    await publish(broker, body)
    await publish(broker, goodbye)
    await publish(broker, b"no JSON", key="agent.bot")
    await publish_signed(broker, strict, a_body("bot"), by="other")
    await publish_signed(broker, strict, a_body("bot"), by="other", key="agent.other")
    for wrong in ("", "v1=", f"v1={'0' * 64}", f"v2{signed[SIGNATURE_HEADER][2:]}", signed[SIGNATURE_HEADER] + "\n", 7):
        await publish(broker, {**body, "message_id": str(uuid4())}, headers={SIGNATURE_HEADER: wrong})
    await publish(broker, another_id, headers=signed)
    await publish(broker, {**body, "acp_url": "http://10.6.6.6"}, headers=signed)
    await publish_signed(broker, strict, a_body("last"))
    await eventually_rows(sessions, "SELECT 1 FROM agents WHERE name = 'last'")
    parked = await rows(sessions, "SELECT reason, sum(attempts) AS times FROM parked GROUP BY reason")
    assert {row.reason: row.times for row in parked} == {"not-signed": 12, "key-mismatch": 1}
    assert not await rows(sessions, "SELECT 1 FROM agents WHERE name IN ('bot', 'other')")
    recorded = await rows(sessions, "SELECT agent_name, outcome FROM registrations ORDER BY seq")
    assert [tuple(row) for row in recorded] == [("other", "Rejected"), ("last", "Registered")]


async def test_an_unsigned_message_does_not_use_up_the_id_of_a_signed_one(
    broker: AbstractConnection, sessions: Sessions, strict: Settings
) -> None:
    """G78: Whoever sends a pod's message id first without its signature neither stops that message nor hides it."""
    body, refused = a_body("bot", deployment_id="v1"), a_body("bot", agent_id=str(uuid4()))
    await publish(broker, {**body, "acp_url": "http://10.6.6.6"})
    await publish(broker, {**refused, "acp_url": "http://10.6.6.6"})
    await publish_signed(broker, strict, body)
    await publish_signed(broker, strict, refused)
    outcomes = await eventually_rows(sessions, "SELECT outcome FROM registrations ORDER BY seq", 2)
    assert [row.outcome for row in outcomes] == ["Registered", "Rejected"]
    parked = await eventually_rows(sessions, "SELECT reason FROM parked ORDER BY reason", 3)
    assert [row.reason for row in parked] == ["agent-id-mismatch", "not-signed", "not-signed"]


async def test_signatures_are_ignored_where_they_are_not_required(
    broker: AbstractConnection, sessions: Sessions, settings: Settings
) -> None:
    """Pods may begin to sign before workers require it, with whatever key they have."""
    async with working(run_registrar, settings):
        body = a_body("bot", deployment_id="v1")
        await publish(broker, to_json(body), key="agent.bot", headers=signature_headers(settings, "other", body))
        await eventually_rows(sessions, "SELECT 1 FROM agents WHERE name = 'bot'")


async def test_a_registrar_that_cannot_check_signatures_does_not_start(settings: Settings) -> None:
    """G78: Without a secret key the process refuses to start; the other workers need none."""
    keyless = settings.model_copy(update={"require_signed_announcements": True, "secret_key": SecretStr("")})
    with pytest.raises(StartRefused, match="PODIUM_SECRET_KEY"):
        await run_workers(keyless)
    with pytest.raises(StartRefused, match="PODIUM_SECRET_KEY"):
        await run_registrar(keyless, asyncio.Event())
