"""Cutover: the only function that changes what serves an agent."""

from datetime import datetime, timedelta

from msgspec.structs import replace

from contracts.events import DeploymentDemoted, DeploymentPromoted, Serving
from contracts.fields import Cause
from services.domain.state import AgentSnapshot, AgentState, LedgerRow, emit, serving, status_of_agent

LEDGER_RESOLUTION = timedelta(microseconds=1)


def cutover(
    state: AgentSnapshot,
    to: str | None,
    *,
    cause: Cause,
    actor: str,
    reason: str | None = None,
    restored: int | None = None,
    agent: AgentState | None = None,
) -> AgentSnapshot:
    """Put deployment `to` into production, or none if it is None; adds a generation, a ledger row and an event.

    `agent` is the agent's row with the other changes of the same step: a new legacy address, or the deletion.
    The event is `promoted` or `demoted`. If no deployment is in production before or after, there is none; the caller
    then emits `agent.registered` or `agent.deleted`, which carries the new generation.
    """
    before = serving(state)
    previous = state.production
    at = _next_time(state)
    row = agent or state.agent
    deployments = dict(state.deployments)
    if previous is not None:
        # Conversations stay with it until they end; those of a deleted agent have ended.
        draining_since = None if cause == "agent_deleted" else at
        deployments[previous.id] = replace(
            previous, is_production=False, draining_since=draining_since, drained_at=None
        )
    if to is not None:
        deployments[to] = replace(
            deployments[to], is_production=True, promoted_at=at, draining_since=None, drained_at=None
        )
    changed = replace(
        state,
        agent=replace(row, production_deployment_id=to, generation=row.generation + 1),
        deployments=deployments,
        last_cutover_at=at,
    )
    status, status_reason = status_of_agent(changed)
    changed = replace(changed, agent=replace(changed.agent, status=status, status_reason=status_reason, updated_at=at))
    after = serving(changed)
    entry = LedgerRow(
        agent_id=row.id,
        generation=changed.agent.generation,
        cause=cause,
        actor=actor,
        reason=reason,
        before=before,
        after=after,
        restored=restored,
        at=at,
        request_id=state.request_id,
        on_behalf_of=state.on_behalf_of,
    )
    return _emit_event(replace(changed, ledger=(*changed.ledger, entry)), entry)


def _emit_event(state: AgentSnapshot, entry: LedgerRow) -> AgentSnapshot:
    before, after = entry.before, entry.after
    if after is not None and after.deployment_id is not None:
        return emit(state, _promoted(state, entry, after), subject=after.deployment_id)
    if before is not None and before.deployment_id is not None:
        data = DeploymentDemoted(
            agent_id=str(entry.agent_id),
            agent_name=state.agent.name,
            deployment_id=before.deployment_id,
            generation=entry.generation,
            cause=entry.cause,
            actor=entry.actor,
            reason=entry.reason,
            acp_url=after.acp_url if after else None,
            demoted_at=entry.at,
            request_id=entry.request_id,
            on_behalf_of=entry.on_behalf_of,
        )
        return emit(state, data, subject=before.deployment_id)
    return state


def _promoted(state: AgentSnapshot, entry: LedgerRow, after: Serving) -> DeploymentPromoted:
    return DeploymentPromoted(
        agent_id=str(entry.agent_id),
        agent_name=state.agent.name,
        deployment_id=after.deployment_id or "",
        previous=entry.before,
        generation=entry.generation,
        cause=entry.cause,
        actor=entry.actor,
        reason=entry.reason,
        acp_url=after.acp_url or "",
        docker_image=after.docker_image,
        promoted_at=entry.at,
        request_id=entry.request_id,
        on_behalf_of=entry.on_behalf_of,
    )


def _next_time(state: AgentSnapshot) -> datetime:
    """The time of this cutover; later than the last one even if the clock did not advance, so the ledger is ordered."""
    if state.last_cutover_at is None:
        return state.now
    return max(state.now, state.last_cutover_at + LEDGER_RESOLUTION)
