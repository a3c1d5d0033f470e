"""What probes mean: when to look again, and when answers or failures in a row change a status. All policy, no database.

One answer or failure never flips a status: it takes as many in a row as the threshold says, and each change of
direction begins to count anew.
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

# Always sooner, never later: what is promised of the interval holds, although a janitor takes a moment to see what is
# due, and what came at once does not stay together.
LATEST, JITTER = 0.98, 0.1
# A preview that keeps failing is asked less and less often, up to this many doublings.
DOUBLINGS = 3
# A pod that has announced itself and waits for its first answer is asked soon, then more patiently.
FIRST_WAIT = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePolicy:
    """How often an agent's deployments are asked, how long each may take, and how many in a row make a verdict."""

    interval: timedelta
    threshold: int
    timeout: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTarget:
    """A deployment that is due, as it was when it was claimed."""

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
        """Whether it has announced itself and not been heard since."""
        return _awaits_probe(self.status, self.registered_at, self.status_changed_at)

    @property
    def url(self) -> str:
        """Its health page."""
        return joined(self.acp_url, self.health_path)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found: why it failed, or None if the pod answered."""

    target: ProbeTarget
    failure: str | None


def probe_policy_of(agent: AgentState, settings: Settings) -> ProbePolicy:
    """What the agent's owner wants, else what the settings say; no probe outlasts the interval."""
    return make_probe_policy(settings, agent.probe_interval_seconds, agent.probe_threshold, agent.probe_timeout_seconds)


def make_probe_policy(
    settings: Settings, interval_seconds: float | None, threshold: int | None, timeout_seconds: float | None
) -> ProbePolicy:
    """These where they are set, else the defaults; no probe outlasts the interval."""
    interval = settings.probe_interval if interval_seconds is None else timedelta(seconds=interval_seconds)
    timeout = settings.probe_timeout if timeout_seconds is None else timedelta(seconds=timeout_seconds)
    return ProbePolicy(
        interval=interval, threshold=threshold or settings.probe_threshold, timeout=min(timeout, interval)
    )


def wait_before_next(target: ProbeTarget, jitter: float) -> timedelta:
    """How long until this one is due again; `jitter` is between 0 and 1."""
    wait, failures = target.policy.interval, max(-target.streak, 0)
    if target.awaits_probe:
        wait = min(wait, FIRST_WAIT * 2**failures)
    elif target.status == "Failed" and not target.is_production:
        wait *= 2 ** min(max(failures - target.policy.threshold, 0), DOUBLINGS)
    return wait * (LATEST - JITTER * jitter)


def changes_nothing(result: ProbeResult) -> bool:
    """Whether this answer only confirms what is stored, as nearly all do: nothing has to be locked for it."""
    target, failure = result.target, result.failure
    if target.status == ("Ready" if failure is None else "Failed"):
        return target.streak == _streak(target.status, target.streak, failure, target.policy.threshold)
    return False


def apply_probe(state: AgentSnapshot, result: ProbeResult) -> AgentSnapshot:
    """The state after this probe.

    Unchanged if the deployment was deleted or registered again after it was claimed: the probe asked another pod.
    """
    target, failure = result.target, result.failure
    stored = state.deployments.get(target.id)
    if stored is None or stored.expires_at is not None or not _is_what_was_probed(stored, target):
        return state
    threshold = target.policy.threshold
    deployment = replace(stored, probe_streak=_streak(stored.status, stored.probe_streak, failure, threshold))
    state = state.with_deployment(deployment)
    if failure is not None and deployment.status == "Ready" and deployment.probe_streak <= -threshold:
        return fail(state, deployment, f"{threshold} probes in a row failed, the last one: {failure}")
    if failure is None and _has_proven_itself(deployment, threshold):
        return _revive(state, deployment)
    return state


def expire(state: AgentSnapshot, deployment_id: str, deadline: timedelta) -> AgentSnapshot:
    """The state in which a deployment that was Pending for this long is Failed; unchanged if it is not."""
    deployment = state.deployments.get(deployment_id)
    if deployment is None or deployment.status != "Pending" or deployment.expires_at is not None:
        return state
    if state.now < deployment.status_changed_at + deadline:
        return state
    missing = "its pod did not announce itself" if deployment.acp_url is None else "no probe was answered"
    return fail(state, deployment, f"{missing} within {_spoken(deadline)}")


def fail(state: AgentSnapshot, deployment: DeploymentState, reason: str) -> AgentSnapshot:
    """The state in which this deployment was found not to work, in production or not; the pointer stays."""
    failed = replace(deployment, status="Failed", status_reason=reason, status_changed_at=state.now)
    state = state.with_deployment(failed)
    status, status_reason = status_of_agent(state)
    state = replace(state, agent=replace(state.agent, status=status, status_reason=status_reason))
    told = DeploymentFailed(
        agent_id=str(state.agent.id),
        agent_name=state.agent.name,
        deployment_id=failed.id,
        reason=reason,
        is_production=failed.is_production,
    )
    return emit(state, told, subject=failed.id)


def _revive(state: AgentSnapshot, deployment: DeploymentState) -> AgentSnapshot:
    ready = replace(deployment, status="Ready", status_reason=None, status_changed_at=state.now, probe_streak=0)
    if deployment.ready_at is not None:
        return announce_ready(state.with_deployment(ready), ready)
    ready = replace(ready, ready_at=state.now)
    return promote_first_time(announce_ready(state.with_deployment(ready), ready), ready)


def _has_proven_itself(deployment: DeploymentState, threshold: int) -> bool:
    if _awaits_probe(deployment.status, deployment.registered_at, deployment.status_changed_at):
        return True
    return deployment.status == "Failed" and deployment.ready_at is not None and deployment.probe_streak >= threshold


def _awaits_probe(status: DeploymentStatus, registered_at: datetime | None, status_changed_at: datetime) -> bool:
    """Announced after it came to this status: one answer is proof, where without an announcement it takes several."""
    if status == "Failed":
        return registered_at is not None and registered_at > status_changed_at
    return status == "Pending"


def _is_what_was_probed(stored: DeploymentState, target: ProbeTarget) -> bool:
    return (stored.acp_url, stored.registered_at) == (target.acp_url, target.registered_at)


def _streak(status: DeploymentStatus, before: int, failure: str | None, threshold: int) -> int:
    """One more in this direction, or the first; not counted beyond what makes a difference."""
    if failure is None:
        return 0 if status == "Ready" else min(max(before, 0) + 1, threshold)
    return max(min(before, 0) - 1, -(threshold + DOUBLINGS))


def _spoken(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"  # noqa: PLR2004 - of a minute
