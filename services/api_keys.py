"""API keys: the key of an agent, with which its pods register again, and constant-time comparison."""

import hmac
from hashlib import sha256
from uuid import UUID

AGENT_KEY_PREFIX = "pak_"


def agent_api_key(secret_key: str, agent_id: UUID) -> str:
    """The API key of an agent, derived from the secret key and the agent's id. It is never stored."""
    digest = hmac.new(secret_key.encode(), b"podium agent key\x00" + agent_id.bytes, sha256)
    return f"{AGENT_KEY_PREFIX}{digest.hexdigest()}"


def same_secret(given: str, expected: str) -> bool:
    """Whether both are equal. The comparison takes constant time, so it does not reveal where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())
