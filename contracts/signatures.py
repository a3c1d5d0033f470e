"""Signatures of announcements and goodbyes, which prove that a pod of the agent has made the message.

A signature is HMAC-SHA256 (RFC 2104) with the agent's signing key, over the message id, a line feed and the body.
"""

import hmac
import re
from hashlib import sha256
from uuid import UUID

SIGNATURE_HEADER = "x-podium-signature"
SIGNATURE_PATTERN = "^v1=[0-9a-f]{64}$"


def signature(signing_key: str, message_id: UUID, body: bytes) -> str:
    """The value of the header for a message with this id, exactly this body, and the signing key of its agent."""
    digest = hmac.new(signing_key.encode(), f"{message_id}\n".encode() + body, sha256)
    return f"v1={digest.hexdigest()}"


def is_signature(value: object, signing_key: str, message_id: UUID, body: bytes) -> bool:
    """Whether the value of the header is the right one. Compared in constant time."""
    if not isinstance(value, str) or not re.fullmatch(SIGNATURE_PATTERN, value):
        return False
    return hmac.compare_digest(value, signature(signing_key, message_id, body))
