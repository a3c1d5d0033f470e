"""The database side of deliveries: claiming what is due, and storing what became of it.

A claim is one event of one agent for one webhook, for a time. No lock is held while it is sent. A sender whose claim
has ended, or was taken back, changes nothing: its result is dropped, and the event is sent again under the same id.
Transactions lock the webhook before its positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from services.events.outbox import envelope
from services.webhooks.filters import WANTED
from services.webhooks.sender import Attempt, Delivery

# Of each webhook.
DELIVERIES_KEPT = 200
# A receiver that accepts again after so long gets everything that waits at once, instead of at the times of retries. A
# receiver that refuses the events of one agent alone does not count as one.
SILENT_FOR = timedelta(minutes=1)

_WITH_WORK = text("""
SELECT w.id FROM webhooks AS w
WHERE w.status = 'active' AND (EXISTS (
    SELECT FROM webhook_positions AS p
    WHERE p.webhook_id = w.id AND p.due_at <= statement_timestamp() AND p.attempts <= 0
) OR EXISTS (
    SELECT FROM webhook_positions AS p
    WHERE p.webhook_id = w.id AND p.due_at <= statement_timestamp() AND p.attempts > 0))
""")

# Receivers that are not known to fail come first, then what is due the longest, whatever its webhook.
_CLAIM = text(f"""
WITH due AS MATERIALIZED (
    SELECT d.webhook_id, d.agent_id
    FROM unnest(CAST(:webhooks AS uuid[]), CAST(:free AS integer[])) AS slot(webhook_id, free)
    JOIN webhooks AS w ON w.id = slot.webhook_id AND w.status = 'active'
    CROSS JOIN LATERAL (
        SELECT p.webhook_id, p.agent_id, p.due_at FROM webhook_positions AS p
        WHERE p.webhook_id = slot.webhook_id AND p.due_at <= statement_timestamp() AND (p.attempts > 0) = :retries
        ORDER BY p.due_at LIMIT slot.free FOR NO KEY UPDATE SKIP LOCKED
    ) AS d
    ORDER BY w.failing_since IS NOT NULL, d.due_at LIMIT :total
), claimed AS (
    UPDATE webhook_positions AS p
    SET claim = gen_random_uuid(), due_at = clock_timestamp() + CAST(:lease AS interval)
    FROM due WHERE p.webhook_id = due.webhook_id AND p.agent_id = due.agent_id
    RETURNING p.webhook_id, p.agent_id AS claimed_agent_id, p.claim, p.sequence AS accepted, p.last_sequence, p.attempts
)
SELECT c.*, w.url, w.secret, w.failing_since,
    CASE WHEN w.previous_until > statement_timestamp() THEN w.previous_secret END AS previous_secret, e.*
FROM claimed AS c JOIN webhooks AS w ON w.id = c.webhook_id
LEFT JOIN LATERAL (
    SELECT o.event_id, o.type, o.agent_id, o.agent_name, o.subject, o.sequence, o.generation,
        o.payload::text AS payload, o.traceparent, o.created_at
    FROM outbox AS o
    WHERE o.agent_id = c.claimed_agent_id AND o.sequence > c.accepted AND o.sequence <= c.last_sequence AND {WANTED}
    ORDER BY o.sequence LIMIT 1
) AS e ON true
""")  # noqa: S608 - built from constants only

# Who changes or deletes a webhook locks it FOR UPDATE, before its positions.
_KEEP = text("SELECT failing_since IS NOT NULL FROM webhooks WHERE id = :webhook_id FOR KEY SHARE")
# Also excludes those who hand out events to its positions.
_LOCK = text("SELECT id FROM webhooks WHERE id = :webhook_id FOR NO KEY UPDATE")
_LOCK_FAILING = text("""
SELECT failing_since < clock_timestamp() - CAST(:silent_for AS interval) FROM webhooks
WHERE id = :webhook_id AND failing_since IS NOT NULL FOR NO KEY UPDATE
""")
_RECOVER = text("UPDATE webhooks SET failing_since = NULL WHERE id = :webhook_id")
_WAKE = text("""
UPDATE webhook_positions AS p SET due_at = clock_timestamp() FROM (
    SELECT webhook_id, agent_id FROM webhook_positions
    WHERE webhook_id = :webhook_id AND claim IS NULL AND due_at > clock_timestamp() FOR NO KEY UPDATE SKIP LOCKED
) AS waiting WHERE p.webhook_id = waiting.webhook_id AND p.agent_id = waiting.agent_id
""")
_FAIL = text("""
UPDATE webhooks SET failing_since = coalesce(failing_since, statement_timestamp()) WHERE id = :webhook_id
RETURNING failing_since, statement_timestamp() - failing_since AS failing_for
""")
_FINISH = text("""
DELETE FROM webhook_positions
WHERE webhook_id = :webhook_id AND agent_id = :agent_id AND claim = :claim AND last_sequence <= :sequence
""")
_ADVANCE = text("""
UPDATE webhook_positions SET sequence = :sequence, attempts = 0, claim = NULL, due_at = clock_timestamp()
WHERE webhook_id = :webhook_id AND agent_id = :agent_id AND claim = :claim
""")
# Of a claim without an event. A lock can return a newer row than the claim's snapshot has events for.
_IS_LEFT = f"""EXISTS (
    SELECT FROM outbox AS o JOIN webhooks AS w ON w.id = p.webhook_id
    WHERE o.agent_id = p.agent_id AND o.sequence > p.sequence AND o.sequence <= p.last_sequence AND {WANTED})"""
_FINISH_EMPTY = text(f"""
DELETE FROM webhook_positions AS p
WHERE webhook_id = :webhook_id AND agent_id = :agent_id AND claim = :claim AND NOT {_IS_LEFT}
""")  # noqa: S608 - built from constants only
_RELEASE = text("""
UPDATE webhook_positions SET claim = NULL, due_at = clock_timestamp()
WHERE webhook_id = :webhook_id AND agent_id = :agent_id AND claim = :claim
""")
_RETRY = text("""
UPDATE webhook_positions SET attempts = attempts + 1, claim = NULL,
    due_at = clock_timestamp() + CAST(:wait AS interval)
WHERE webhook_id = :webhook_id AND agent_id = :agent_id AND claim = :claim
""")
_RECORD = text("""
INSERT INTO webhook_deliveries (webhook_id, event_id, event_type, agent_id, agent_name, sequence, attempt, outcome,
    status, detail, seconds)
VALUES (:webhook_id, :event_id, :event_type, :agent_id, :agent_name, :sequence, :attempt, :outcome, :status, :detail,
    :seconds)
""")
_FORGET = text("""
DELETE FROM webhook_deliveries WHERE webhook_id = :webhook_id AND id <= (
    SELECT id FROM webhook_deliveries WHERE webhook_id = :webhook_id ORDER BY id DESC OFFSET :kept LIMIT 1)
""")


@dataclass(frozen=True, slots=True)
class Claim:
    """One event to send. `event_id` is None if nothing is left to send, since retention removed it.

    `delivery` is None then, and for an event that cannot be encoded.
    """

    webhook_id: UUID
    agent_id: UUID
    claim: UUID
    sequence: int
    attempt: int
    event_id: UUID | None = None
    event_type: str = ""
    agent_name: str = ""
    delivery: Delivery | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a result changed: nothing, if the claim had ended. `failing_for` is how long nothing has been accepted."""

    stored: bool
    began_failing: bool = False
    recovered: bool = False
    failing_since: datetime | None = None
    failing_for: timedelta = timedelta(0)


async def webhooks_with_work(connection: AsyncConnection) -> Sequence[UUID]:
    """The active webhooks with something that is due."""
    return (await connection.scalars(_WITH_WORK)).all()


async def claim(
    connection: AsyncConnection, free: dict[UUID, int], *, total: int, retries: bool, lease: timedelta
) -> list[Claim]:
    """Claim up to `total` first attempts, or retries, that are due: up to `free` of each webhook, until the lease ends.

    One statement, so in autocommit mode the claims are committed with it.
    """
    if not free or total <= 0:
        return []
    parameters = {
        "webhooks": list(free),
        "free": list(free.values()),
        "total": total,
        "retries": retries,
        "lease": lease,
    }
    return [_claim_of(row) for row in (await connection.execute(_CLAIM, parameters)).all()]


async def settle_accepted(session: AsyncSession, claimed: Claim, attempt: Attempt) -> Settled:
    """The receiver accepted the event: the agent's next one is due. Others see it once the transaction is committed."""
    webhook = {"webhook_id": claimed.webhook_id}
    was_silent = None
    if await session.scalar(_KEEP, webhook):
        was_silent = await session.scalar(_LOCK_FAILING, {**webhook, "silent_for": SILENT_FOR})
    parameters = {**_key(claimed), "sequence": claimed.sequence}
    if not (await _changed(session, _FINISH, parameters) or await _changed(session, _ADVANCE, parameters)):
        return Settled(stored=False)
    await _record(session, claimed, attempt)
    if was_silent is not None:
        await session.execute(_RECOVER, webhook)
    if was_silent:
        await session.execute(_WAKE, webhook)
    return Settled(stored=True, recovered=was_silent is not None)


async def settle_removed(session: AsyncSession, claimed: Claim) -> Settled:
    """Nothing was left to send: the position ends, or is due again if events have come since the claim."""
    await session.execute(_LOCK, {"webhook_id": claimed.webhook_id})
    key = _key(claimed)
    return Settled(stored=await _changed(session, _FINISH_EMPTY, key) or await _changed(session, _RELEASE, key))


async def settle_failed(session: AsyncSession, claimed: Claim, attempt: Attempt, wait: timedelta) -> Settled:
    """The receiver did not accept the event: it is due again after `wait`."""
    await session.execute(_LOCK, {"webhook_id": claimed.webhook_id})
    if not await _changed(session, _RETRY, {**_key(claimed), "wait": wait}):
        return Settled(stored=False)
    failing = (await session.execute(_FAIL, {"webhook_id": claimed.webhook_id})).one()
    await _record(session, claimed, attempt)
    return Settled(
        stored=True,
        began_failing=failing.failing_for <= timedelta(0),
        failing_since=failing.failing_since,
        failing_for=failing.failing_for,
    )


async def _changed(session: AsyncSession, statement: Any, parameters: dict[str, Any]) -> bool:  # noqa: ANN401
    result = await session.execute(statement, parameters)
    return bool(result.rowcount)  # type: ignore[attr-defined]  # a cursor result, since the statement writes


async def _record(session: AsyncSession, claimed: Claim, attempt: Attempt) -> None:
    await session.execute(
        _RECORD,
        {
            "webhook_id": claimed.webhook_id,
            "agent_id": claimed.agent_id,
            "event_id": claimed.event_id,
            "event_type": claimed.event_type,
            "agent_name": claimed.agent_name,
            "sequence": claimed.sequence,
            "attempt": claimed.attempt,
            "outcome": attempt.outcome,
            "status": attempt.status,
            "detail": attempt.detail,
            "seconds": attempt.seconds,
        },
    )
    await session.execute(_FORGET, {"webhook_id": claimed.webhook_id, "kept": DELIVERIES_KEPT})


def _key(claimed: Claim) -> dict[str, Any]:
    return {"webhook_id": claimed.webhook_id, "agent_id": claimed.agent_id, "claim": claimed.claim}


def _claim_of(row: Row[*tuple[Any, ...]]) -> Claim:
    if row.event_id is None:
        return Claim(row.webhook_id, row.claimed_agent_id, row.claim, row.last_sequence, row.attempts + 1)
    return Claim(
        webhook_id=row.webhook_id,
        agent_id=row.claimed_agent_id,
        claim=row.claim,
        sequence=row.sequence,
        attempt=row.attempts + 1,
        event_id=row.event_id,
        event_type=row.type,
        agent_name=row.agent_name,
        delivery=_delivery_of(row),
    )


def _delivery_of(row: Row[*tuple[Any, ...]]) -> Delivery | None:
    """The same bytes for each attempt. None for an event that cannot be encoded: it must not stop other agents."""
    try:
        body = envelope(row).model_dump_json(exclude_none=True).encode()
    except ValueError:
        return None
    secrets = (row.secret,) if row.previous_secret is None else (row.secret, row.previous_secret)
    return Delivery(row.url, str(row.event_id), body, secrets)
