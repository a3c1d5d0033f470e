"""Signatures of webhooks, as Standard Webhooks defines them.

Specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import hmac
import secrets
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256

SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix alone
# The specification asks for 24 to 64 bytes.
_SECRET_BYTES = 32


def new_secret() -> bytes:
    """A random secret."""
    return secrets.token_bytes(_SECRET_BYTES)


def shown(secret: bytes) -> str:
    """The secret as receivers' libraries read it."""
    return f"{SECRET_PREFIX}{b64encode(secret).decode()}"


def signature_headers(event_id: str, timestamp: int, body: bytes, secrets_: Iterable[bytes]) -> dict[str, str]:
    """The headers of a delivery at this time (Unix seconds), with one signature per secret."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    signatures = (b64encode(hmac.digest(each, signed, sha256)).decode() for each in secrets_)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{each}" for each in signatures),
    }
