"""Health policy: when to probe again, and which probe results change a status, as pure functions.

A status changes after `threshold` equal results in a row; a different result restarts the count. One exception: a
deployment that has just registered becomes Ready with its first answered probe. A probe that the prober could not make
is no result, and never reaches this module. A call that the deployment answered after the first failed probe restarts
the count, too. Production needs the agreement of a second janitor if one runs.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from contracts.events import DeploymentFailed
from contracts.fields import joined
from services.domain.readiness import announce_ready, promote_first_time
from services.domain.state import (
    NO_FAILURES,
    AgentSnapshot,
    AgentState,
    DeploymentState,
    DeploymentStatus,
    FailedProbes,
    OnFailure,
    emit,
    status_of_agent,
)
from services.settings import Settings

# The next probe is due after 88 to 98 % of the interval: a janitor notices a due probe a little late, and the interval
# must hold all the same. The jitter spreads deployments that became due together.
INTERVAL_SHARE, JITTER = 0.98, 0.1
# A preview that keeps failing is probed less often: its interval doubles up to this many times.
MAX_DOUBLINGS = 3
# After a pod has registered, its first probes follow quickly; this wait doubles with each failure.
FIRST_WAIT = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePolicy:
    """How often an agent's deployments are probed, the time limit of a probe, and how many in a row make a verdict."""

    interval: timedelta
    threshold: int
    timeout: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTarget:
    """A deployment that is due for a probe, as stored when it was claimed."""

    id: str
    agent_id: UUID
    status: DeploymentStatus
    status_changed_at: datetime
    is_production: bool
    acp_url: str
    health_path: str
    registered_at: datetime | None
    streak: int
    on_failure: OnFailure
    policy: ProbePolicy

    @property
    def awaits_probe(self) -> bool:
        """Whether it has registered and has not answered a probe since."""
        return _awaits_probe(self.status, self.registered_at, self.status_changed_at)

    @property
    def url(self) -> str:
        """The URL of its health page."""
        return joined(self.acp_url, self.health_path)


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """The outcome of one probe; `unknown` if the prober could not make it, which says nothing about the pod."""

    kind: Literal["answered", "failed", "unknown"]
    reason: str | None = None
    other_agent: bool = False
    """Whether a pod of another agent answered at this address. It answers calls as well, so they prove nothing."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one probe: `failure` is the reason why it failed, or None if the pod answered."""

    target: ProbeTarget
    failure: str | None
    janitor_id: UUID | None = None
    other_agent: bool = False


def probe_policy_of(agent: AgentState, settings: Settings) -> ProbePolicy:
    """The agent's own values, with the settings as defaults. No probe takes longer than the interval."""
    return make_probe_policy(settings, agent.probe_interval_seconds, agent.probe_threshold, agent.probe_timeout_seconds)


def make_probe_policy(
    settings: Settings, interval_seconds: float | None, threshold: int | None, timeout_seconds: float | None
) -> ProbePolicy:
    """The given values, with the settings as defaults. No probe takes longer than the interval."""
    interval = settings.probe_interval if interval_seconds is None else timedelta(seconds=interval_seconds)
    timeout = settings.probe_timeout if timeout_seconds is None else timedelta(seconds=timeout_seconds)
    return ProbePolicy(
        interval=interval, threshold=threshold or settings.probe_threshold, timeout=min(timeout, interval)
    )


def wait_before_next(target: ProbeTarget, jitter: float) -> timedelta:
    """The time until the next probe of this deployment is due; `jitter` is between 0 and 1."""
    wait, failures = target.policy.interval, max(-target.streak, 0)
    if target.awaits_probe:
        wait = min(wait, FIRST_WAIT * 2**failures)
    elif target.status == "Failed" and not target.is_production:
        wait *= 2 ** min(max(failures - target.policy.threshold, 0), MAX_DOUBLINGS)
    return wait * (INTERVAL_SHARE - JITTER * jitter)


def changes_nothing(result: ProbeResult) -> bool:
    """Whether this result only confirms the stored state, as most do. Such a result needs no lock and no write."""
    target, failure = result.target, result.failure
    if target.status == ("Ready" if failure is None else "Failed"):
        return target.streak == _streak(target.status, target.streak, failure, target.policy.threshold)
    return False


def apply_probe(state: AgentSnapshot, result: ProbeResult, *, has_peer: bool = False) -> AgentSnapshot:
    """The state after this probe result; `has_peer` says whether another janitor runs that could give its opinion.

    Unchanged if the deployment was deleted or registered again after the claim: the result may be from another pod.
    """
    target, failure = result.target, result.failure
    stored = state.deployments.get(target.id)
    if stored is None or stored.expires_at is not None or not _is_unchanged(stored, target):
        return state
    threshold = target.policy.threshold
    if failure is None:
        deployment = replace(
            stored, probe_streak=_streak(stored.status, stored.probe_streak, None, threshold), failures=NO_FAILURES
        )
        state = state.with_deployment(deployment)
        return _set_ready(state, deployment) if _recovers(deployment, threshold) else state
    deployment = _failed_once_more(stored, result, state.now)
    if deployment.status != "Ready" or deployment.probe_streak > -threshold:
        return state.with_deployment(deployment)
    if deployment.is_production and has_peer and not deployment.failures.confirmed:
        until = deployment.failures.opinion_until
        if until is None or state.now < until:
            waiting = replace(deployment.failures, opinion_until=until or state.now + target.policy.interval)
            return state.with_deployment(replace(deployment, failures=waiting))
    return fail(
        state.with_deployment(deployment), deployment, f"{threshold} probes in a row failed, the last one: {failure}"
    )


def expire(state: AgentSnapshot, deployment_id: str, deadline: timedelta) -> AgentSnapshot:
    """Set the deployment Failed if it has been Pending for longer than `deadline`; otherwise nothing changes."""
    deployment = state.deployments.get(deployment_id)
    if deployment is None or deployment.status != "Pending" or deployment.expires_at is not None:
        return state
    if state.now < deployment.status_changed_at + deadline:
        return state
    missing = "its pod did not announce itself" if deployment.acp_url is None else "no probe was answered"
    return fail(state, deployment, f"{missing} within {_in_words(deadline)}")


def fail(state: AgentSnapshot, deployment: DeploymentState, reason: str) -> AgentSnapshot:
    """Set this deployment Failed. If it is in production, it stays in production and the agent is Failed too."""
    failed = replace(deployment, status="Failed", status_reason=reason, status_changed_at=state.now)
    state = state.with_deployment(failed)
    status, status_reason = status_of_agent(state)
    state = replace(state, agent=replace(state.agent, status=status, status_reason=status_reason))
    event = DeploymentFailed(
        agent_id=str(state.agent.id),
        agent_name=state.agent.name,
        deployment_id=failed.id,
        reason=reason,
        is_production=failed.is_production,
    )
    return emit(state, event, subject=failed.id)


def _set_ready(state: AgentSnapshot, deployment: DeploymentState) -> AgentSnapshot:
    ready = replace(deployment, status="Ready", status_reason=None, status_changed_at=state.now, probe_streak=0)
    if deployment.ready_at is not None:
        return announce_ready(state.with_deployment(ready), ready)
    ready = replace(ready, ready_at=state.now)
    return promote_first_time(announce_ready(state.with_deployment(ready), ready), ready)


def _recovers(deployment: DeploymentState, threshold: int) -> bool:
    if _awaits_probe(deployment.status, deployment.registered_at, deployment.status_changed_at):
        return True
    return deployment.status == "Failed" and deployment.ready_at is not None and deployment.probe_streak >= threshold


def _awaits_probe(status: DeploymentStatus, registered_at: datetime | None, status_changed_at: datetime) -> bool:
    """Whether the first answered probe makes it Ready: it is Pending, or it registered after it had Failed."""
    if status == "Failed":
        return registered_at is not None and registered_at > status_changed_at
    return status == "Pending"


def _failed_once_more(stored: DeploymentState, result: ProbeResult, now: datetime) -> DeploymentState:
    """The deployment with one more failed probe, counted from the last proof that it lives."""
    before, failures = stored.probe_streak, stored.failures
    called = failures.last_call_at is not None and failures.since is not None and failures.last_call_at > failures.since
    if before >= 0 or (called and stored.status == "Ready" and not result.other_agent):
        before = 0
        failures = FailedProbes(since=now, janitor_id=result.janitor_id)
    else:
        janitors = {failures.janitor_id, result.janitor_id} - {None}
        confirmed = failures.confirmed or len(janitors) > 1
        failures = replace(
            failures,
            since=failures.since or now,
            janitor_id=failures.janitor_id or result.janitor_id,
            confirmed=confirmed,
        )
    streak = _streak(stored.status, before, result.failure, result.target.policy.threshold)
    return replace(stored, probe_streak=streak, failures=failures)


def _is_unchanged(stored: DeploymentState, target: ProbeTarget) -> bool:
    return (stored.acp_url, stored.registered_at) == (target.acp_url, target.registered_at)


def _streak(status: DeploymentStatus, before: int, failure: str | None, threshold: int) -> int:
    """The streak after one more result; limited to the values that make a difference."""
    if failure is None:
        return 0 if status == "Ready" else min(max(before, 0) + 1, threshold)
    return max(min(before, 0) - 1, -(threshold + MAX_DOUBLINGS))


def _in_words(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"  # noqa: PLR2004 - of a minute
