"""Health policy: when to probe again, and which probe results change a status, as pure functions.

A status changes after `threshold` equal results in a row; a different result restarts the count. One exception: a
deployment that has just registered becomes Ready with its first answered probe. A probe that the prober could not make
is no result, and never reaches this module. A call that the deployment answered after the first failed probe restarts
the count, too. Production needs the agreement of a second janitor if one runs.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeVar
from uuid import UUID

from msgspec.structs import replace

from contracts.fields import joined
from services.domain.instances import announce_instance, fail_instance, settle
from services.domain.readiness import set_failed, set_ready
from services.domain.state import (
    NO_FAILURES,
    AgentSnapshot,
    AgentState,
    DeploymentState,
    DeploymentStatus,
    FailedProbes,
    InstanceState,
    OnFailure,
)
from services.settings import Settings

P = TypeVar("P", bound=DeploymentState | InstanceState)

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
    """A pod that is due for a probe, as stored when it was claimed: an instance, or the only pod of a deployment.

    `id` is the deployment's. The other fields are the instance's own, if the deployment has instances.
    """

    id: str
    instance_id: str = ""
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
    deployment = state.deployments.get(target.id)
    if deployment is None or deployment.expires_at is not None:
        return state
    stored = _probed(state, deployment, target.instance_id)
    if stored is None or not _is_unchanged(stored, target):
        return state
    threshold = target.policy.threshold
    if failure is None:
        pod = replace(
            stored, probe_streak=_streak(stored.status, stored.probe_streak, None, threshold), failures=NO_FAILURES
        )
        return _set_ready(state, pod) if _recovers(pod, threshold) else _with(state, pod)
    pod = _failed_once_more(stored, result, state.now)
    if pod.status != "Ready" or pod.probe_streak > -threshold:
        return _with(state, pod)
    if deployment.is_production and has_peer and not pod.failures.confirmed:
        until = pod.failures.opinion_until
        if until is None or state.now < until:
            waiting = replace(pod.failures, opinion_until=until or state.now + target.policy.interval)
            return _with(state, replace(pod, failures=waiting))
    return _set_failed(state, pod, f"{threshold} probes in a row failed, the last one: {failure}")


def expire(state: AgentSnapshot, deployment_id: str, deadline: timedelta) -> AgentSnapshot:
    """Set the deployment, or its instances, Failed if Pending for longer than `deadline`; otherwise nothing changes."""
    deployment = state.deployments.get(deployment_id)
    if deployment is None or deployment.expires_at is not None:
        return state
    unanswered = f"no probe was answered within {_in_words(deadline)}"
    own = state.instances.get(deployment_id, {})
    for instance in own.values():
        if instance.status == "Pending" and state.now >= instance.status_changed_at + deadline:
            state = fail_instance(state, instance, unanswered)
    deployment = state.deployments[deployment_id]
    waiting = any(each.status == "Pending" for each in state.instances.get(deployment_id, {}).values())
    if deployment.status != "Pending" or waiting or state.now < deployment.status_changed_at + deadline:
        return state
    missing = f"its pod did not announce itself within {_in_words(deadline)}"
    return set_failed(state, deployment, missing if deployment.acp_url is None else unanswered)


def _probed(
    state: AgentSnapshot, deployment: DeploymentState, instance_id: str
) -> DeploymentState | InstanceState | None:
    """What a probe was made of: an instance, or the deployment if it has none; None if that is gone."""
    if deployment.has_instances:
        return state.instances.get(deployment.id, {}).get(instance_id)
    return None if instance_id else deployment


def _with(state: AgentSnapshot, pod: DeploymentState | InstanceState) -> AgentSnapshot:
    return state.with_instance(pod) if isinstance(pod, InstanceState) else state.with_deployment(pod)


def _set_ready(state: AgentSnapshot, pod: DeploymentState | InstanceState) -> AgentSnapshot:
    if isinstance(pod, DeploymentState):
        return set_ready(state, pod)
    ready = replace(
        pod,
        status="Ready",
        status_reason=None,
        status_changed_at=state.now,
        probe_streak=0,
        ready_at=pod.ready_at or state.now,
    )
    state = announce_instance(state.with_instance(ready), pod, ready)
    return settle(state, ready.deployment_id, "")


def _set_failed(state: AgentSnapshot, pod: DeploymentState | InstanceState, reason: str) -> AgentSnapshot:
    if isinstance(pod, DeploymentState):
        return set_failed(state, pod, reason)
    return fail_instance(state, pod, reason)


def _recovers(pod: DeploymentState | InstanceState, threshold: int) -> bool:
    if _awaits_probe(pod.status, pod.registered_at, pod.status_changed_at):
        return True
    return pod.status == "Failed" and pod.ready_at is not None and pod.probe_streak >= threshold


def _awaits_probe(status: DeploymentStatus, registered_at: datetime | None, status_changed_at: datetime) -> bool:
    """Whether the first answered probe makes it Ready: it is Pending, or it registered after it had Failed."""
    if status == "Failed":
        return registered_at is not None and registered_at > status_changed_at
    return status == "Pending"


def _failed_once_more(stored: P, result: ProbeResult, now: datetime) -> P:
    """The pod with one more failed probe, counted from the last proof that it lives."""
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


def _is_unchanged(stored: DeploymentState | InstanceState, target: ProbeTarget) -> bool:
    return (stored.acp_url, stored.registered_at) == (target.acp_url, target.registered_at)


def _streak(status: DeploymentStatus, before: int, failure: str | None, threshold: int) -> int:
    """The streak after one more result; limited to the values that make a difference."""
    if failure is None:
        return 0 if status == "Ready" else min(max(before, 0) + 1, threshold)
    return max(min(before, 0) - 1, -(threshold + MAX_DOUBLINGS))


def _in_words(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"  # noqa: PLR2004 - of a minute
