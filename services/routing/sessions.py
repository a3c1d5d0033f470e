"""MCP sessions over HTTP: each belongs to the route that issued it, and stays with the deployment that issued it.

A route is production's or the one of a deployment. A session of a deployment's route has no effect on production's.

A session id is unique within its agent only. It is a secret of agent and client, so only its digest is stored.
https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#session-management
"""

import hashlib
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

# The resolution of `last_seen_at`: each session is updated at most once per interval, however many calls it gets.
SEEN_EVERY = timedelta(hours=1)

# Whether the deployment `issuer` keeps the session `s`. Rows of version 0.1 do not say which route issued them
# (`preview` is NULL): they count only if the deployment has been in production.
ISSUER_KEEPS = """issuer.status = 'Ready' AND issuer.expires_at IS NULL
    AND (s.preview IS NOT NULL OR issuer.promoted_at IS NOT NULL)"""
# The issuing deployment keeps the session while it is Ready, even if another deployment of the agent returns the id.
_KEEP = text(f"""
INSERT INTO conversations AS s (agent_id, key_sha256, deployment_id, preview)
VALUES (CAST(:agent_id AS uuid), CAST(:digest AS bytea), CAST(:deployment_id AS text), CAST(:preview AS boolean))
ON CONFLICT (agent_id, key_sha256) DO UPDATE
SET deployment_id = excluded.deployment_id, last_seen_at = clock_timestamp(), preview = excluded.preview
WHERE s.deployment_id <> excluded.deployment_id AND NOT EXISTS (
    SELECT FROM deployments AS issuer WHERE issuer.id = s.deployment_id AND {ISSUER_KEEPS})
""")  # noqa: S608 - built from constants only
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
    SELECT agent_id, key_sha256 FROM conversations WHERE last_seen_at < :before
    ORDER BY last_seen_at LIMIT :limit FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM conversations AS s USING old
    WHERE s.agent_id = old.agent_id AND s.key_sha256 = old.key_sha256 RETURNING s.agent_id
)
SELECT count(*) FROM removed
""")


def digest_of(session_id: bytes, preview: str | None = None) -> bytes:
    """The SHA-256 that is stored in place of a session id.

    `preview` is the deployment whose own route is used. The same id has another digest on each route, so that no answer
    on one route can change where calls on another one go.
    """
    # No header value contains a NUL, so no id on production's route has this form.
    scoped = session_id if preview is None else b"\0".join((preview.encode(), session_id))
    return hashlib.sha256(scoped).digest()


async def keep_session(
    session: AsyncSession, agent_id: UUID, digest: bytes, deployment_id: str, *, preview: bool = False
) -> None:
    """Pin the session to the deployment: after the commit, every process routes its calls there while it is Ready.

    `preview`: the deployment's own route issued it, so `digest` is the one of that route.
    """
    values = {"agent_id": agent_id, "digest": digest, "deployment_id": deployment_id, "preview": preview}
    await session.execute(_KEEP, values)


async def session_seen(session: AsyncSession, agent_id: UUID, digest: bytes) -> None:
    """Update `last_seen_at`, and so restart the retention, if it is more than an hour old."""
    await session.execute(_SEEN, {"agent_id": agent_id, "digest": digest, "every": SEEN_EVERY})


async def end_session(session: AsyncSession, agent_id: UUID, digest: bytes) -> None:
    """Delete the session, so its id is unknown again."""
    await session.execute(_END, {"agent_id": agent_id, "digest": digest})


async def remove_unseen(session: AsyncSession, before: datetime, limit: int) -> int:
    """Delete at most `limit` sessions last seen before `before`; returns how many it deleted."""
    return int(await session.scalar(_REMOVE, {"before": before, "limit": limit}) or 0)
