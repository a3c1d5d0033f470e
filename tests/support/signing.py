"""Signed messages, as pods with their agent's key send them."""

from typing import Any
from uuid import UUID

from aio_pika.abc import AbstractConnection
from pydantic_core import to_json

from contracts.signatures import SIGNATURE_HEADER, signature
from services.registration.signatures import signing_key
from services.settings import Settings
from tests.support.broker import publish


def signature_headers(settings: Settings, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """The headers of a message with this body, signed with the key of this agent."""
    key = signing_key(settings.secret_key.get_secret_value(), name)
    return {SIGNATURE_HEADER: signature(key, UUID(body["message_id"]), to_json(body))}


async def publish_signed(
    broker: AbstractConnection,
    settings: Settings,
    body: dict[str, Any],
    *,
    by: str | None = None,
    key: str | None = None,
) -> None:
    """Publish a message signed by its agent, or by another one."""
    await publish(broker, body, key=key, headers=signature_headers(settings, by or body["name"], body))
