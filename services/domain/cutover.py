"""The one way in which what serves an agent changes: by hand, by itself, back again, or to nothing."""

from dataclasses import replace
from datetime import datetime, timedelta

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
    """The state in which deployment `to` is in production, or none is: one generation, one ledger row, one event.

    `agent` is the agent's row with what else changes in the same step (its legacy address, its deletion).
    The event is `promoted` or `demoted`. Where only the legacy address came, changed or went there is none: the
    caller announces the generation with its own `agent.registered` or `agent.deleted`.
    """
    before = serving(state)
    previous = state.production
    at = _next_moment(state)
    row = agent or state.agent
    deployments = dict(state.deployments)
    if previous is not None:
        deployments[previous.id] = replace(previous, is_production=False)
    if to is not None:
        deployments[to] = replace(deployments[to], is_production=True, promoted_at=at)
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
    )
    return _announce(replace(changed, ledger=(*changed.ledger, entry)), entry)


def _announce(state: AgentSnapshot, entry: LedgerRow) -> AgentSnapshot:
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
    )


def _next_moment(state: AgentSnapshot) -> datetime:
    """Later than the last cut-over even where the clock stood still or went back, so that the ledger reads in order."""
    if state.last_cutover_at is None:
        return state.now
    return max(state.now, state.last_cutover_at + LEDGER_RESOLUTION)
