"""Parked messages: messages that cannot be applied, stored whole in the transaction that refuses them.

They stay until an operator drops them or their retention ends. A retry does not remove the row.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from pydantic_core import from_json, to_json
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from services.domain.caller import Caller
from services.domain.identity import EVERYBODY, Identity
from services.errors import NotRetryable, NotSigned, ParkedNotFound, PodiumError
from services.identities.audit import record
from services.identities.visibility import visible
from services.storage.models import Parked
from services.storage.pages import Page

# On a retry: the id of the parked message.
RETRY_HEADER = "x-podium-retry-of"
# Of AMQP. What stands for bytes that are not UTF-8 takes more bytes than they did.
ROUTING_KEY_MAX_BYTES = 255
# On a parked message: the names of the headers that could not be stored.
LEFT_OUT_HEADER = "x-podium-left-out"


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message as the broker delivered it."""

    routing_key: str
    body: bytes
    headers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message to park, and the error. Refusals of one deployment for one reason share a row, unless `alone`."""

    envelope: Envelope
    error: PodiumError
    message_id: UUID | None = None
    agent_name: str | None = None
    deployment_id: str | None = None
    alone: bool = False

    @property
    def key(self) -> str:
        """The key of the row; refusals with the same key share it.

        A message that is not signed may have the id of a pod's own message, whose row it must not take.
        """
        complete = self.message_id is not None and self.agent_name is not None and self.deployment_id is not None
        if complete and not self.alone:
            return f"{self.agent_name}/{self.deployment_id}/{self.error.reason}"
        if self.message_id is not None and not isinstance(self.error, NotSigned):
            return str(self.message_id)
        return hashlib.sha256(self.envelope.body).hexdigest()


# A message that is already parked (same id, or same body if it has none) changes nothing; another one counts up.
_PARK = text("""
INSERT INTO parked (
    key, message_id, agent_name, deployment_id, reason, error, routing_key, headers, body, attempts)
SELECT r.key, r.message_id, r.agent_name, r.deployment_id, r.reason, r.error, r.routing_key, r.headers,
    b.body, r.attempts
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    position int, key text, message_id uuid, agent_name text, deployment_id text, reason text, error text,
    routing_key text, headers jsonb, attempts int)
JOIN unnest(CAST(:bodies AS bytea[])) WITH ORDINALITY AS b(body, position) ON b.position = r.position
ORDER BY r.key
ON CONFLICT (key) DO UPDATE SET
    attempts = parked.attempts + excluded.attempts,
    message_id = excluded.message_id,
    error = excluded.error,
    routing_key = excluded.routing_key,
    headers = excluded.headers,
    body = excluded.body,
    received_at = clock_timestamp()
WHERE parked.message_id IS DISTINCT FROM excluded.message_id
""")


_REMOVE = text("""
WITH old AS (
    SELECT id FROM parked WHERE received_at < :before ORDER BY received_at LIMIT :limit FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM parked WHERE id = ANY(ARRAY(SELECT id FROM old)) RETURNING id
)
SELECT count(*) FROM removed
""")


async def park(session: AsyncSession, refusals: Iterable[Refusal]) -> None:
    """Store these messages; others see them once the transaction is committed."""
    newest: dict[str, Refusal] = {}
    attempts: dict[str, set[UUID | None]] = {}
    for refusal in refusals:
        newest[refusal.key] = refusal
        attempts.setdefault(refusal.key, set()).add(refusal.message_id)
    if not newest:
        return
    rows = [
        {
            "position": position,
            "key": key,
            "message_id": refusal.message_id,
            "agent_name": refusal.agent_name,
            "deployment_id": refusal.deployment_id,
            "reason": refusal.error.reason,
            "error": refusal.error.message,
            "routing_key": refusal.envelope.routing_key,
            "headers": _storable(refusal.envelope.headers),
            "attempts": len(attempts[key]),
        }
        for position, (key, refusal) in enumerate(newest.items(), start=1)
    ]
    bodies = [refusal.envelope.body for refusal in newest.values()]
    await session.execute(_PARK, {"rows": _storable_json(rows), "bodies": bodies})


async def list_parked(
    session: AsyncSession, page: Page, agent_name: str | None = None, identity: Identity = EVERYBODY
) -> Sequence[Parked]:
    """One page of parked messages without their bodies, newest first; of one agent name, or of all that are seen."""
    query = select(Parked).options(defer(Parked.body, raiseload=True)).where(visible(Parked.agent_name, identity))
    if agent_name is not None:
        query = query.where(Parked.agent_name == agent_name)
    newest_first = query.order_by(Parked.received_at.desc(), Parked.id)
    return (await session.scalars(newest_first.limit(page.limit).offset(page.offset))).all()


async def get_parked(session: AsyncSession, parked_id: UUID) -> Parked:
    """The parked message, whole. Raises `ParkedNotFound`."""
    found = await session.get(Parked, parked_id)
    if found is None:
        raise ParkedNotFound
    return found


async def mark_retried(
    session: AsyncSession, parked_id: UUID, caller: Caller, *, accept_unsigned: bool = False
) -> datetime:
    """Store that the message was sent again; returns the time. Only the audit log knows if it was dropped meanwhile."""
    now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    marked = update(Parked).where(Parked.id == parked_id).values(retried_at=now).returning(Parked.agent_name)
    agent_name = await session.scalar(marked)
    details: dict[str, object] | None = {"accept_unsigned": True} if accept_unsigned else None
    await record(session, caller, "parked.retried", str(parked_id), agent_name=agent_name, details=details)
    return now


async def remove_parked(session: AsyncSession, before: datetime, limit: int) -> int:
    """Delete up to `limit` messages that were last parked before `before`; returns how many it deleted."""
    return int(await session.scalar(_REMOVE, {"before": before, "limit": limit}) or 0)


async def drop_parked(session: AsyncSession, parked_id: UUID, caller: Caller) -> None:
    """Delete the message; it is gone once the transaction is committed. Raises `ParkedNotFound`."""
    dropped = delete(Parked).where(Parked.id == parked_id).returning(Parked.agent_name, Parked.reason)
    row = (await session.execute(dropped)).one_or_none()
    if row is None:
        raise ParkedNotFound
    details: dict[str, object] = {"parked_reason": row.reason}
    await record(session, caller, "parked.dropped", str(parked_id), agent_name=row.agent_name, details=details)


def retry_id(parked: Parked) -> UUID:
    """The message id of the next retry; it stays the same until the message is marked as retried, or parked again.

    So if a client repeats a retry because it got no response, the registrar decides it once and sees a duplicate.
    """
    return uuid5(parked.id, f"{parked.received_at} {parked.retried_at}")


def sent_again(parked: Parked, message_id: UUID) -> Envelope:
    """The parked message with a new id, to be published as a normal announcement.

    It keeps its time, so a newer announcement still wins; if it has none, it gets the time of parking. Raises
    `NotRetryable` if the body is not a JSON object, or if no message can have its routing key.
    """
    if len(parked.routing_key.encode()) > ROUTING_KEY_MAX_BYTES:
        raise NotRetryable(
            "The routing key of the message is too long and names no agent: drop it, and let its pod register again."
        )
    try:
        content = from_json(parked.body)
    except ValueError as error:
        raise NotRetryable from error
    if not isinstance(content, dict):
        raise NotRetryable
    content["message_id"] = str(message_id)
    if content.get("registered_at") is None:
        content["registered_at"] = parked.received_at.isoformat()
    headers = {RETRY_HEADER: str(parked.id)}
    if isinstance(traceparent := parked.headers.get("traceparent"), str):
        headers["traceparent"] = traceparent
    return Envelope(parked.routing_key, to_json(content), headers)


def _storable(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers; only their names if they are nested too deeply to be parsed again inside a response."""
    try:
        from_json(_json([[headers]]))
    except (ValueError, RecursionError):
        return {LEFT_OUT_HEADER: sorted(map(str, headers))}
    return headers


def _storable_json(rows: list[dict[str, Any]]) -> str:
    """JSON that PostgreSQL accepts: headers and routing key are untrusted and may contain NUL characters."""
    return _json(rows).replace("\\u0000", "\\ufffd")


def _json(content: object) -> str:
    return to_json(content, bytes_mode="base64", inf_nan_mode="null", serialize_unknown=True).decode()
