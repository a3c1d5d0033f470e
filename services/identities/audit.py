"""The audit log: every change that is not in the ledger, with who made it. Written in the transaction of the change."""

from collections.abc import Sequence

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.caller import Caller
from services.domain.identity import Identity
from services.identities.visibility import visible
from services.storage.models import AuditEntry


async def record(
    session: AsyncSession,
    caller: Caller,
    action: str,
    subject: str,
    *,
    agent_name: str | None = None,
    details: dict[str, object] | None = None,
) -> None:
    """Add an entry; others see it once the transaction is committed. `details` must contain no secrets."""
    if caller.reason is not None:
        details = {**(details or {}), "reason": caller.reason}
    await session.execute(
        insert(AuditEntry).values(
            actor=caller.actor,
            action=action,
            subject=subject,
            agent_name=agent_name,
            request_id=caller.request_id,
            on_behalf_of=caller.on_behalf_of,
            details=details or {},
        )
    )


async def list_audit(
    session: AsyncSession,
    identity: Identity,
    *,
    limit: int,
    before: int | None = None,
    agent_name: str | None = None,
    actor: str | None = None,
    action: str | None = None,
) -> Sequence[AuditEntry]:
    """The newest entries that the identity sees, newest first: before an id, and of one agent, actor or action."""
    query = (
        select(AuditEntry).where(visible(AuditEntry.agent_name, identity)).order_by(AuditEntry.id.desc()).limit(limit)
    )
    if before is not None:
        query = query.where(AuditEntry.id < before)
    for column, wanted in (
        (AuditEntry.agent_name, agent_name),
        (AuditEntry.actor, actor),
        (AuditEntry.action, action),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    return (await session.scalars(query)).all()
