"""Keys: the one that agents' pods get to register again, and how secrets are compared."""

import hmac
from hashlib import sha256
from uuid import UUID

AGENT_KEY_PREFIX = "pak_"


def agent_api_key(secret_key: str, agent_id: UUID) -> str:
    """The agent's own key: the same each time, derived and never stored."""
    digest = hmac.new(secret_key.encode(), b"podium agent key\x00" + agent_id.bytes, sha256)
    return f"{AGENT_KEY_PREFIX}{digest.hexdigest()}"


def same_secret(given: str, expected: str) -> bool:
    """Whether the two are equal, in a time that tells nothing of where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())
