"""Reads for people who look at all agents, or at one with all its versions: some statements for a whole page."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.identity import Identity
from services.routing.conversations import IS_OPEN, ConversationTerms

# What an agent can be filtered by: its status, or a state that needs somebody's attention.
Shown = Literal["all", "ready", "failed", "idle", "paused", "previews"]
# Agents and conversations are counted up to here: more make no difference to a reader, and counting takes time.
COUNTED_MAX = 100_000
CONVERSATIONS_MAX = 1000

_HAS_PREVIEW = """EXISTS (
    SELECT FROM deployments AS d
    WHERE d.agent_id = a.id AND d.expires_at IS NULL AND NOT d.is_production AND d.draining_since IS NULL)"""
_CONDITIONS: dict[Shown, str] = {
    "all": "true",
    "ready": "a.status = 'Ready'",
    "failed": "a.status = 'Failed'",
    "idle": "a.status = 'BuildOnly'",
    "paused": "a.auto_promote_paused",
    "previews": _HAS_PREVIEW,
}

# The page first, by the index of names; everything else is looked up for its rows only.
_PAGE = """
WITH page AS MATERIALIZED (
    SELECT a.* FROM agents AS a
    WHERE a.deleted_at IS NULL AND {condition}
        AND (CAST(:names AS text[]) IS NULL OR a.name = ANY(CAST(:names AS text[]))
            OR a.name LIKE ANY(CAST(:prefixes AS text[])))
        AND (CAST(:search AS text) = '' OR strpos(a.name, CAST(:search AS text)) > 0)
        AND (CAST(:edge AS text) = '' OR a.name {past} CAST(:edge AS text))
    ORDER BY a.name {direction} LIMIT :limit
)
SELECT page.id, page.name, page.description, page.status, page.status_reason, page.generation,
    page.production_deployment_id, page.legacy_acp_url IS NOT NULL AS has_legacy, page.auto_promote_paused,
    coalesce(d.docker_image, page.docker_image) AS docker_image, d.status AS production_status, served.at AS since,
    coalesce(pods.total, CASE WHEN page.status = 'BuildOnly' THEN 0 ELSE 1 END) AS instances,
    coalesce(pods.ready, CASE WHEN page.status = 'Ready' THEN 1 ELSE 0 END) AS instances_ready,
    (SELECT count(*) FROM deployments AS o
        WHERE o.agent_id = page.id AND o.expires_at IS NULL AND NOT o.is_production) AS others
FROM page
LEFT JOIN deployments AS d ON d.id = page.production_deployment_id
LEFT JOIN promotions AS served ON served.agent_id = page.id AND served.generation = page.generation
LEFT JOIN LATERAL (
    SELECT count(*) AS total, count(*) FILTER (WHERE i.status = 'Ready') AS ready
    FROM instances AS i WHERE i.deployment_id = d.id
) AS pods ON d.has_instances
ORDER BY page.name {direction}
"""

_COUNTS = text("""
SELECT count(*) AS all, count(*) FILTER (WHERE status = 'Ready') AS ready,
    count(*) FILTER (WHERE status = 'Failed') AS failed, count(*) FILTER (WHERE status = 'BuildOnly') AS idle,
    count(*) FILTER (WHERE auto_promote_paused) AS paused
FROM (
    SELECT status, auto_promote_paused FROM agents
    WHERE deleted_at IS NULL
        AND (CAST(:names AS text[]) IS NULL OR name = ANY(CAST(:names AS text[]))
            OR name LIKE ANY(CAST(:prefixes AS text[])))
    LIMIT :most
) AS counted
""")

_VERSIONS = text(f"""
SELECT d.id,
    (SELECT count(*) FROM instances AS i WHERE i.deployment_id = d.id) AS instances,
    (SELECT count(*) FROM instances AS i WHERE i.deployment_id = d.id AND i.status = 'Ready') AS instances_ready,
    (SELECT count(*) FROM (
        SELECT FROM conversations AS c WHERE c.deployment_id = d.id AND {IS_OPEN} LIMIT {CONVERSATIONS_MAX}
    ) AS counted) AS conversations
FROM deployments AS d JOIN agents AS a ON a.id = d.agent_id
WHERE d.id = ANY(CAST(:ids AS text[]))
""")  # noqa: S608 - built from constants only


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLine:
    """One agent of a list: what serves it, since when, and whether that is well."""

    id: UUID
    name: str
    description: str
    status: str
    status_reason: str | None
    generation: int
    production_deployment_id: str | None
    has_legacy: bool
    auto_promote_paused: bool
    docker_image: str | None
    production_status: str | None
    since: datetime | None
    instances: int
    instances_ready: int
    others: int


@dataclass(frozen=True, slots=True)
class AgentLines:
    """One page of agents in the order of their names, and whether there are others before and after it."""

    lines: list[AgentLine]
    has_earlier: bool
    has_later: bool


@dataclass(frozen=True, slots=True)
class VersionCounts:
    """The pods of a version that name themselves, and its open conversations, of which at most 1000 are counted."""

    instances: int
    instances_ready: int
    conversations: int


async def agent_lines(
    session: AsyncSession,
    *,
    identity: Identity,
    search: str,
    shown: Shown,
    after: str = "",
    before: str = "",
    limit: int,
) -> AgentLines:
    """The next agents after the name `after`, or the last ones before the name `before`, whose name has `search`.

    Only those that the identity sees.
    """
    backwards = bool(before)
    statement = _PAGE.format(
        condition=_CONDITIONS[shown],
        past="<" if backwards else ">",
        direction="DESC" if backwards else "ASC",
    )
    parameters = {"search": search, "edge": before or after, "limit": limit + 1, **_seen(identity)}
    rows = (await session.execute(text(statement), parameters)).all()
    lines = [AgentLine(**row._mapping) for row in rows[:limit]]  # noqa: SLF001 - public API of SQLAlchemy
    more = len(rows) > limit
    if backwards:
        return AgentLines(lines[::-1], has_earlier=more, has_later=True)
    return AgentLines(lines, has_earlier=bool(after), has_later=more)


async def agent_counts(session: AsyncSession, identity: Identity) -> dict[str, int]:
    """How many agents there are of each kind that the identity sees, of the first 100,000."""
    row = (await session.execute(_COUNTS, {"most": COUNTED_MAX, **_seen(identity)})).one()
    return dict(row._mapping)  # noqa: SLF001 - public API of SQLAlchemy


def _seen(identity: Identity) -> dict[str, list[str] | None]:
    """The names and the patterns of names that the identity sees; None for all."""
    seen = identity.seen()
    if seen is None:
        return {"names": None, "prefixes": None}
    names, prefixes = seen
    return {"names": names, "prefixes": [f"{prefix}%" for prefix in prefixes]}


async def version_counts(
    session: AsyncSession, ids: Sequence[str], terms: ConversationTerms
) -> dict[str, VersionCounts]:
    """The counts of these deployments, by id."""
    rows = await session.execute(_VERSIONS, {"ids": list(ids), **terms.parameters()})
    return {row.id: VersionCounts(row.instances, row.instances_ready, row.conversations) for row in rows}
