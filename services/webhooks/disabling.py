"""Disabling a webhook whose receiver is gone or has accepted nothing for long: told by an event and the audit log."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.events import WebhookDisabled
from services.domain.caller import Caller
from services.domain.readiness import AUTOMATION
from services.domain.state import AgentSnapshot, emit
from services.identities.audit import record
from services.storage.models import Webhook
from services.storage.store import lock_agent, save

Reason = Literal["gone", "failing"]


async def disable(
    session: AsyncSession, webhook_id: UUID, agent_id: UUID, reason: Reason, failing_since: datetime | None
) -> bool:
    """Disable an active webhook; whether it was still active, and still failing since then.

    Adds an event of the agent whose event was not accepted, and an entry of the audit log. Others see it once the
    transaction is committed.
    """
    agent = await lock_agent(session, agent_id)
    webhook = await session.get(Webhook, webhook_id, with_for_update=True, populate_existing=True)
    if webhook is None or webhook.status != "active" or webhook.failing_since != failing_since:
        return False
    now = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    webhook.status, webhook.status_reason, webhook.status_changed_at = "disabled", reason, now
    await session.flush()
    await record(
        session,
        Caller(actor=AUTOMATION),
        "webhook.disabled",
        str(webhook_id),
        agent_name=webhook.agent_name,
        details={"why": reason, "failing_since": None if failing_since is None else failing_since.isoformat()},
    )
    told = WebhookDisabled(
        agent_id=str(agent.id),
        agent_name=agent.name,
        webhook_id=str(webhook_id),
        all_agents=webhook.agent_id is None,
        reason=reason,
        failing_since=failing_since,
        disabled_at=now,
    )
    state = emit(AgentSnapshot(agent=agent, now=now), told, subject=str(webhook_id))
    await save(session, agents=[(agent, state.agent)], deployments=(), ledger=(), events=state.events)
    return True
