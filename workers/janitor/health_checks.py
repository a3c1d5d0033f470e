"""Health checks: probing a deployment, applying the result, and rolling back a production that has failed."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from contracts.events import DeploymentFailed, DeploymentReady, InstanceFailed, InstanceReady
from services.domain.health_policy import ProbeResult, ProbeTarget, changes_nothing
from services.domain.state import AgentSnapshot, DeploymentState
from services.errors import Unavailable
from services.health.prober import Prober
from services.health.probes import expire_pending, give_verdict, give_verdicts
from services.promotion.rollback import roll_back_failed, rollback_candidates
from services.storage.database import Sessions, in_transaction
from workers.janitor.monitor import ProbeMonitor
from workers.metrics import WorkerMetrics

# Transactions for a single agent that run at the same time.
SINGLE_TRANSACTIONS = 3
RESULTS_PER_BATCH = 200

log = structlog.get_logger(__name__)
T = TypeVar("T")


class HealthChecker:
    """Probes deployments and applies the results. Errors are logged, not raised: the next probe retries."""

    def __init__(
        self,
        sessions: Sessions,
        prober: Prober,
        batcher: "ResultBatcher",
        monitor: ProbeMonitor,
        *,
        janitor_id: UUID,
        metrics: WorkerMetrics,
    ) -> None:
        self._sessions = sessions
        self._batcher = batcher
        self._prober = prober
        self._monitor = monitor
        self._janitor_id = janitor_id
        self._metrics = metrics
        self._connections = asyncio.Semaphore(SINGLE_TRANSACTIONS)

    async def check(self, target: ProbeTarget) -> None:
        """Probe a deployment, apply the result, and roll back if production has failed and the agent wants that.

        An outcome that says more about this janitor than about the deployment changes nothing.
        """
        outcome = await self._prober.probe(target.url, target.agent_id, target.policy.timeout)
        if not self._monitor.record(target, outcome):
            return
        result = ProbeResult(target, outcome.reason, self._janitor_id, outcome.other_agent)
        try:
            failed = await self._apply(result)
            if failed and target.is_production and target.on_failure == "rollback":
                await self._roll_back(target.agent_id, target.id, target.policy.timeout)
        except Exception as error:  # noqa: BLE001 - nothing was committed, and the next probe retries
            _log_not_stored(target.id, error)

    async def expire(self, agent_id: UUID, deployment_id: str, deadline: timedelta) -> bool:
        """Set a deployment Failed that has been Pending for too long; False if the database could not decide that."""
        try:
            after = await self._in_transaction(
                lambda session: expire_pending(session, agent_id, deployment_id, deadline)
            )
            self._changed(after, deployment_id)
        except Exception as error:  # noqa: BLE001 - as above
            _log_not_stored(deployment_id, error)
            return False
        return True

    async def _apply(self, result: ProbeResult) -> bool:
        """Apply a probe result; returns whether the probe failed and the deployment is Failed."""
        target = result.target
        status = target.status
        if not changes_nothing(result):
            after = await self._batcher.apply(result)
            if after is None:
                after = await self._in_transaction(lambda session: give_verdict(session, result))
            deployment = self._changed(after, target.id)
            status = deployment.status if deployment is not None else "Pending"
        return result.failure is not None and status == "Failed"

    async def roll_back_abandoned(self, agent_id: UUID, deployment_id: str, time_limit: timedelta) -> None:
        """Roll back a production that has failed because its last instance said goodbye, so that no probe fails."""
        try:
            await self._roll_back(agent_id, deployment_id, time_limit)
        except Exception as error:  # noqa: BLE001 - as above
            _log_not_stored(deployment_id, error)

    async def _roll_back(self, agent_id: UUID, failed_id: str, time_limit: timedelta) -> None:
        """Roll back to the newest candidate that answers a probe; if none does, the next failed probe retries."""
        candidates = await self._in_transaction(lambda session: rollback_candidates(session, agent_id, failed_id))
        if not candidates:
            return
        probes = (self._prober.ask(candidate.url, agent_id, time_limit) for candidate in candidates)
        failures = await asyncio.gather(*probes)
        healthy = (candidate for candidate, failure in zip(candidates, failures, strict=True) if failure is None)
        candidate = next(healthy, None)
        if candidate is None:
            log.error(
                "Production has failed, and no rollback candidate answers.",
                action="janitor.no_rollback_candidate",
                deployment=failed_id,
            )
            return
        state = await self._in_transaction(lambda session: roll_back_failed(session, agent_id, failed_id, candidate))
        self._metrics.agents.changed([state])
        if state.events:
            log.warning(
                "Rolled back a failed production; automatic promotion is paused.",
                action="janitor.rolled_back",
                agent=state.agent.name,
                failed=failed_id,
                deployment=candidate.deployment_id,
                generation=state.agent.generation,
            )

    def _changed(self, after: AgentSnapshot, deployment_id: str) -> DeploymentState | None:
        """Log and count each new status that a verdict has set; returns the deployment."""
        self._metrics.agents.changed([after])
        for event in after.events:
            data = event.data
            if isinstance(data, DeploymentFailed):
                self._metrics.verdicts.labels("Failed").inc()
                log.warning("A deployment has failed.", action="janitor.failed", why=data.reason, **_ids(data))
            elif isinstance(data, DeploymentReady):
                self._metrics.verdicts.labels("Ready").inc()
                log.info("A deployment is Ready.", action="janitor.ready", **_ids(data))
            elif isinstance(data, InstanceFailed):
                ids = _ids(data) | {"instance": data.instance_id}
                log.warning("An instance has failed.", action="janitor.instance_failed", why=data.reason, **ids)
            elif isinstance(data, InstanceReady):
                ids = _ids(data) | {"instance": data.instance_id}
                log.info("An instance is Ready.", action="janitor.instance_ready", **ids)
        return after.deployments.get(deployment_id)

    async def _in_transaction(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """The result of a transaction; waits while `SINGLE_TRANSACTIONS` others run."""
        async with self._connections:
            return await in_transaction(self._sessions, work)


class ResultBatcher:
    """Applies probe results that arrive at the same time in one transaction, also when many pods fail at once."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._waiting: list[tuple[ProbeResult, asyncio.Future[AgentSnapshot | None]]] = []
        self._added = asyncio.Event()

    async def apply(self, result: ProbeResult) -> AgentSnapshot | None:
        """The agent after this result, once that is committed; None if the caller must apply the result alone.

        None if another transaction holds the agent's lock, or if the whole batch failed. Raises `Unavailable` while the
        database is unavailable. Returns only while `run` runs.
        """
        applied: asyncio.Future[AgentSnapshot | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((result, applied))
        self._added.set()
        return await applied

    async def run(self) -> None:
        """Apply results until cancelled. Cancel the callers of `apply` first: nothing completes them afterwards."""
        while True:
            await self._added.wait()
            self._added.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:RESULTS_PER_BATCH], self._waiting[RESULTS_PER_BATCH:]
                outcomes = await self._apply_batch([result for result, _ in batch])
                for (_, applied), outcome in zip(batch, outcomes, strict=True):
                    if applied.done():
                        continue
                    if isinstance(outcome, Unavailable):
                        applied.set_exception(outcome)
                    else:
                        applied.set_result(outcome)

    async def _apply_batch(self, results: list[ProbeResult]) -> Sequence[AgentSnapshot | Unavailable | None]:
        try:
            return await in_transaction(self._sessions, lambda session: give_verdicts(session, results))
        except Unavailable as error:
            return [error] * len(results)
        except Exception:  # noqa: BLE001 - each result is then applied alone, which shows the one at fault
            return [None] * len(results)


def _ids(data: DeploymentFailed | DeploymentReady | InstanceFailed | InstanceReady) -> dict[str, object]:
    return {"agent": data.agent_name, "deployment": data.deployment_id, "production": data.is_production}


def _log_not_stored(deployment_id: str, error: Exception) -> None:
    log.warning(
        "Could not store a probe result; the next probe retries.",
        action="janitor.verdict_lost",
        deployment=deployment_id,
        error=f"{type(error).__name__}: {error}"[:300],
    )
