"""Who may speak for an agent on the queue: whoever has its signing key."""

import hmac
from dataclasses import replace
from hashlib import sha256
from uuid import UUID

from contracts.signatures import SIGNATURE_HEADER, is_signature, signature
from contracts.topology import agent_of_key
from services.errors import NotSigned, RetryNotSigned
from services.registration.batch import Incoming, Unreadable
from services.registration.parked import Envelope, sent_again
from services.settings import Settings
from services.storage.models import Parked

SIGNING_KEY_PREFIX = "psk_"


def signing_key(secret_key: str, agent_name: str) -> str:
    """The key with which an agent's pods sign. It is derived from the agent's name, and never stored.

    The name, not the id: a pod signs its first announcement before the agent has an id.
    """
    digest = hmac.new(secret_key.encode(), b"podium signing key\x00" + agent_name.encode(), sha256)
    return f"{SIGNING_KEY_PREFIX}{digest.hexdigest()}"


def is_signed(secret_key: str, envelope: Envelope, message_id: UUID | None) -> bool:
    """Whether the message with this id is signed for the agent that its routing key names."""
    agent_name = agent_of_key(envelope.routing_key)
    if agent_name is None or message_id is None:
        return False
    given = envelope.headers.get(SIGNATURE_HEADER)
    return is_signature(given, signing_key(secret_key, agent_name), message_id, envelope.body)


def retry_of(parked: Parked, message_id: UUID, settings: Settings, *, accept_unsigned: bool = False) -> Envelope:
    """The parked message with a new id, to be published again.

    It is signed if it came with a valid signature, or if `accept_unsigned` says that an operator has checked it. Raises
    `RetryNotSigned` for another message where signatures are required, and `NotRetryable`.
    """
    secret_key = settings.secret_key.get_secret_value()
    again = sent_again(parked, message_id)
    original = Envelope(parked.routing_key, parked.body, parked.headers)
    if accept_unsigned or is_signed(secret_key, original, parked.message_id):
        return _signed(secret_key, again, message_id)
    if settings.require_signed_announcements or parked.reason == NotSigned.reason:
        raise RetryNotSigned
    return again


def require_signature(secret_key: str, incoming: Incoming) -> Incoming:
    """The message as it is if it is signed; else one that is refused, whatever else is wrong with it.

    A message that is too large has no id, so it counts as not signed; no consumer reads such a message from the queue.
    """
    content, envelope = incoming.content, incoming.envelope
    if envelope is None or is_signed(secret_key, envelope, content.message_id):
        return incoming
    refused = Unreadable(
        NotSigned(), content.message_id, agent_of_key(envelope.routing_key), content.deployment_id, authentic=False
    )
    return Incoming(refused, envelope)


def _signed(secret_key: str, envelope: Envelope, message_id: UUID) -> Envelope:
    """The message with a signature for the agent that its routing key names; unchanged if it names none."""
    agent_name = agent_of_key(envelope.routing_key)
    if agent_name is None:
        return envelope
    value = signature(signing_key(secret_key, agent_name), message_id, envelope.body)
    return replace(envelope, headers={**envelope.headers, SIGNATURE_HEADER: value})
