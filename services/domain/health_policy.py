"""Health policy: when to probe again, and which probe results change a status, as pure functions.

A status changes after `threshold` equal results in a row; a different result restarts the count. One exception: a
deployment that has just registered becomes Ready with its first answered probe.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from contracts.events import DeploymentFailed
from contracts.fields import joined
from services.domain.readiness import announce_ready, promote_first_time
from services.domain.state import (
    AgentSnapshot,
    AgentState,
    DeploymentState,
    DeploymentStatus,
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
class ProbeResult:
    """The result of one probe: `failure` is the reason why it failed, or None if the pod answered."""

    target: ProbeTarget
    failure: str | None


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


def apply_probe(state: AgentSnapshot, result: ProbeResult) -> AgentSnapshot:
    """The state after this probe result.

    Unchanged if the deployment was deleted or registered again after the claim: the result may be from another pod.
    """
    target, failure = result.target, result.failure
    stored = state.deployments.get(target.id)
    if stored is None or stored.expires_at is not None or not _is_unchanged(stored, target):
        return state
    threshold = target.policy.threshold
    deployment = replace(stored, probe_streak=_streak(stored.status, stored.probe_streak, failure, threshold))
    state = state.with_deployment(deployment)
    if failure is not None and deployment.status == "Ready" and deployment.probe_streak <= -threshold:
        return fail(state, deployment, f"{threshold} probes in a row failed, the last one: {failure}")
    if failure is None and _recovers(deployment, threshold):
        return _set_ready(state, deployment)
    return state


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
