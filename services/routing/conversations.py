"""Conversations: calls that share a key stay with the deployment, or the instance, of the first one.

A key is an MCP session id, which an agent issues; the header `x-podium-session`; or an id in a body, for agents that
opted in. A conversation belongs to a route, production's or that of one deployment: one of a deployment's route has no
effect on production's. A key is unique within its agent only. It is a secret of agent and client, so only its digest is
stored.
https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#session-management
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.settings import Settings

# What a key is: an MCP session id, the value of `x-podium-session`, or an id in a body.
Kind = Literal["mcp", "explicit", "context", "task"]


@dataclass(frozen=True, slots=True)
class ConversationTerms:
    """How long conversations stay open, where their agent does not say."""

    idle: timedelta = timedelta(days=7)
    max_age: timedelta = timedelta(days=30)
    drain_deadline: timedelta = timedelta(days=7)

    @classmethod
    def of(cls, settings: Settings) -> "ConversationTerms":
        """The terms that these settings say."""
        return cls(settings.conversation_idle, settings.conversation_max_age, settings.drain_deadline)

    def parameters(self) -> dict[str, object]:
        """The parameters of the conditions below."""
        return {"idle": self.idle, "max_age": self.max_age, "drain_deadline": self.drain_deadline}


DEFAULT_TERMS = ConversationTerms()

# When the conversation `c` of the agent `a` ends if no call follows. Rows of version 0.1 do not say when it began.
IDLE = "coalesce(make_interval(secs => a.conversation_idle_seconds), CAST(:idle AS interval))"
ENDS_AT = f"""least(
    c.last_seen_at + {IDLE},
    c.started_at + coalesce(make_interval(secs => a.conversation_max_age_seconds), CAST(:max_age AS interval)))"""
IS_OPEN = f"{ENDS_AT} > statement_timestamp()"
# `last_seen_at` is updated at most once in this time, however many calls a conversation gets.
SEEN_EVERY = timedelta(hours=1)
# A tenth of the time for which it stays open is short enough: it does not end between two calls.
SEEN_AGAIN = f"least({IDLE} / 10, interval '{SEEN_EVERY.total_seconds()} s')"

# Whether the deployment `issuer` keeps the conversation `c`. Rows of version 0.1 do not say which route issued them
# (`preview` is NULL): they count only if the deployment has been in production.
ISSUER_KEEPS = """issuer.status = 'Ready' AND issuer.expires_at IS NULL AND issuer.drained_at IS NULL
    AND (c.preview IS NOT NULL OR issuer.promoted_at IS NOT NULL)"""
# The issuing deployment keeps the session while it is Ready, even if another deployment of the agent returns the id. No
# session begins on production's route with a deployment that is drained: until the commit, its row is locked.
_KEEP = text(f"""
WITH open AS (
    SELECT id, agent_id FROM deployments
    WHERE id = CAST(:deployment_id AS text) AND agent_id = CAST(:agent_id AS uuid) AND expires_at IS NULL
        AND (CAST(:preview AS boolean) OR is_production OR draining_since IS NOT NULL)
    FOR SHARE
), kept AS (
INSERT INTO conversations AS c (agent_id, key_sha256, deployment_id, preview, instance_id)
SELECT agent_id, CAST(:digest AS bytea), id, CAST(:preview AS boolean), CAST(:instance_id AS text) FROM open
ON CONFLICT (agent_id, key_sha256) DO UPDATE
SET deployment_id = excluded.deployment_id, last_seen_at = clock_timestamp(), preview = excluded.preview,
    instance_id = excluded.instance_id, started_at = clock_timestamp()
WHERE c.deployment_id <> excluded.deployment_id AND NOT EXISTS (
    SELECT FROM deployments AS issuer WHERE issuer.id = c.deployment_id AND {ISSUER_KEEPS})
)
SELECT EXISTS (SELECT FROM open)
""")  # noqa: S608 - built from constants only
# The first call of a conversation. One that is kept, and is open, stays as it is.
_PIN = text(f"""
WITH open AS (
    SELECT d.id, d.agent_id FROM deployments AS d
    WHERE d.id = CAST(:deployment_id AS text) AND d.agent_id = CAST(:agent_id AS uuid) AND d.expires_at IS NULL
        AND (CAST(:preview AS boolean) OR d.is_production OR d.draining_since IS NOT NULL)
    FOR SHARE
), pinned AS (
INSERT INTO conversations AS c (agent_id, key_sha256, deployment_id, preview, instance_id)
SELECT agent_id, CAST(:digest AS bytea), id, CAST(:preview AS boolean), CAST(:instance_id AS text) FROM open
ON CONFLICT (agent_id, key_sha256) DO UPDATE
SET deployment_id = excluded.deployment_id, last_seen_at = clock_timestamp(), preview = excluded.preview,
    instance_id = excluded.instance_id, started_at = clock_timestamp()
WHERE NOT EXISTS (
    SELECT FROM deployments AS issuer JOIN agents AS a ON a.id = issuer.agent_id
    WHERE issuer.id = c.deployment_id AND {ISSUER_KEEPS} AND {IS_OPEN})
RETURNING deployment_id
)
SELECT EXISTS (SELECT FROM pinned)
""")  # noqa: S608 - built from constants only
_MOVE = text("""
UPDATE conversations SET instance_id = CAST(:instance_id AS text), last_seen_at = clock_timestamp()
WHERE agent_id = CAST(:agent_id AS uuid) AND key_sha256 = CAST(:digest AS bytea)
    AND deployment_id = CAST(:deployment_id AS text)
""")
_STILL_SEEN = text("""
UPDATE conversations AS c SET last_seen_at = clock_timestamp()
FROM unnest(CAST(:agent_ids AS uuid[]), CAST(:digests AS bytea[])) AS active(agent_id, digest)
WHERE c.agent_id = active.agent_id AND c.key_sha256 = active.digest
""")
_SEEN = text("""
UPDATE conversations SET last_seen_at = clock_timestamp()
WHERE agent_id = CAST(:agent_id AS uuid) AND key_sha256 = CAST(:digest AS bytea)
    AND last_seen_at < clock_timestamp() - CAST(:every AS interval)
""")
_END = text("""
DELETE FROM conversations WHERE agent_id = CAST(:agent_id AS uuid) AND key_sha256 = CAST(:digest AS bytea)
""")
_REMOVE = text("""
WITH old AS (
    SELECT c.agent_id, c.key_sha256 FROM conversations AS c JOIN agents AS a ON a.id = c.agent_id
    WHERE c.last_seen_at < :before AND (a.conversation_idle_seconds IS NULL
        OR c.last_seen_at < clock_timestamp() - make_interval(secs => a.conversation_idle_seconds))
    ORDER BY c.last_seen_at LIMIT :limit FOR UPDATE OF c SKIP LOCKED
), removed AS (
    DELETE FROM conversations AS s USING old
    WHERE s.agent_id = old.agent_id AND s.key_sha256 = old.key_sha256 RETURNING s.agent_id
)
SELECT count(*) FROM removed
""")


def digest_of(key: bytes, preview: str | None = None, kind: Kind = "mcp") -> bytes:
    """The SHA-256 that is stored in place of a key.

    `preview` is the deployment whose own route is used. The same key has another digest on each route, so that no
    answer on one route can change where calls on another one go; and another one for each kind.
    """
    # No key contains a NUL, so no MCP session id on production's route has one of these forms.
    scoped = key if preview is None else b"\0".join((preview.encode(), key))
    return hashlib.sha256(scoped if kind == "mcp" else b"\0".join((b"", kind.encode(), scoped))).digest()


async def pin_conversation(session: AsyncSession, pin: "Pin", terms: ConversationTerms = DEFAULT_TERMS) -> bool:
    """Pin a conversation that begins to the deployment of its first call; returns whether it is pinned there.

    False if the key belongs to a conversation that is open, or if none can begin with the deployment, because it is
    drained or deleted: then the route must be read again. Until the commit, the deployment cannot be drained.
    """
    return bool(await session.scalar(_PIN, {**asdict(pin), "idle": terms.idle, "max_age": terms.max_age}))


async def move_conversation(session: AsyncSession, pin: "Pin") -> None:
    """Pin the conversation to another instance of its deployment."""
    values = asdict(pin)
    del values["preview"]
    await session.execute(_MOVE, values)


@dataclass(frozen=True, slots=True)
class Pin:
    """Where a conversation belongs. `preview`: it began on the deployment's own route."""

    agent_id: UUID
    digest: bytes
    deployment_id: str
    instance_id: str | None
    preview: bool


async def keep_session(
    session: AsyncSession,
    agent_id: UUID,
    digest: bytes,
    deployment_id: str,
    *,
    preview: bool = False,
    instance_id: str | None = None,
) -> bool:
    """Pin the session to the deployment: after the commit, every process routes its calls there while it is Ready.

    `preview`: the deployment's own route issued it, so `digest` is the one of that route. Returns False if no session
    can begin with the deployment, because it is drained or deleted.
    """
    return bool(await session.scalar(_KEEP, asdict(Pin(agent_id, digest, deployment_id, instance_id, preview))))


async def session_seen(session: AsyncSession, agent_id: UUID, digest: bytes, *, every: timedelta = SEEN_EVERY) -> None:
    """Update `last_seen_at` if it is older than `every`, so that the conversation stays open."""
    await session.execute(_SEEN, {"agent_id": agent_id, "digest": digest, "every": every})


async def still_seen(session: AsyncSession, active: Sequence[tuple[UUID, bytes]]) -> None:
    """Update `last_seen_at` of conversations, by agent and digest, that have calls in flight."""
    ordered = sorted(active)
    digests = [digest for _, digest in ordered]
    await session.execute(_STILL_SEEN, {"agent_ids": [agent_id for agent_id, _ in ordered], "digests": digests})


async def end_session(session: AsyncSession, agent_id: UUID, digest: bytes) -> None:
    """Delete the session, so its id is unknown again."""
    await session.execute(_END, {"agent_id": agent_id, "digest": digest})


async def remove_unseen(session: AsyncSession, before: datetime, limit: int) -> int:
    """Delete at most `limit` sessions last seen before `before`; returns how many it deleted."""
    return int(await session.scalar(_REMOVE, {"before": before, "limit": limit}) or 0)
