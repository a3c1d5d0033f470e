"""Asking one deployment whether it lives, and what follows: a verdict, and a way back if it was in production."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from services.domain.health_policy import ProbeResult, ProbeTarget, changes_nothing
from services.domain.state import AgentSnapshot, DeploymentState
from services.health.prober import Prober
from services.health.probes import expire_pending, give_verdict
from services.promotion.rollback import roll_back_failed, rollback_candidates
from services.storage.database import Sessions, in_transaction
from workers.janitor.verdicts import Verdicts

# Transactions of one agent each.
ALONE_AT_ONCE = 3

log = structlog.get_logger(__name__)
T = TypeVar("T")


class HealthChecker:
    """Gives verdicts; one that cannot be given now is given after the next look, so nothing is raised."""

    def __init__(self, sessions: Sessions, prober: Prober, verdicts: Verdicts) -> None:
        self._sessions = sessions
        self._verdicts = verdicts
        self._prober = prober
        self._connections = asyncio.Semaphore(ALONE_AT_ONCE)

    async def check(self, target: ProbeTarget) -> None:
        """Ask it, and let what it answers have its effect."""
        failure = await self._prober.ask(target.url, target.agent_id, target.policy.timeout)
        try:
            failed = await self._apply(ProbeResult(target, failure))
            if failed and target.is_production and target.on_failure == "rollback":
                await self._roll_back(target)
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing was changed
            _lost(target.id, error)

    async def expire(self, agent_id: UUID, deployment_id: str, deadline: timedelta) -> bool:
        """Set Failed what has been Pending for too long; whether that could be decided."""
        try:
            after = await self._do(lambda session: expire_pending(session, agent_id, deployment_id, deadline))
            self._told(after, deployment_id)
        except Exception as error:  # noqa: BLE001 - as above
            _lost(deployment_id, error)
            return False
        return True

    async def _apply(self, result: ProbeResult) -> bool:
        """Whether the deployment has just failed once more and counts as Failed."""
        target = result.target
        status = target.status
        if not changes_nothing(result):
            after = await self._verdicts.give(result)
            if after is None:
                after = await self._do(lambda session: give_verdict(session, result))
            deployment = self._told(after, target.id)
            status = deployment.status if deployment is not None else "Pending"
        return result.failure is not None and status == "Failed"

    def _told(self, after: AgentSnapshot, deployment_id: str) -> DeploymentState | None:
        """The deployment after a verdict, which is told of if it changed the status."""
        deployment = after.deployments.get(deployment_id)
        if deployment is not None and after.events:
            _tell(after, deployment)
        return deployment

    async def _roll_back(self, target: ProbeTarget) -> None:
        """Go back to the newest version that answers; if none does, it is tried again after the next probe."""
        agent_id, failed_id = target.agent_id, target.id
        candidates = await self._do(lambda session: rollback_candidates(session, agent_id, failed_id))
        if not candidates:
            return
        asked = (self._prober.ask(each.url, agent_id, target.policy.timeout) for each in candidates)
        failures = await asyncio.gather(*asked)
        candidate = next((each for each, why in zip(candidates, failures, strict=True) if why is None), None)
        if candidate is None:
            log.error("Nothing that served before answers.", action="janitor.no_refuge", deployment=failed_id)
            return
        state = await self._do(lambda session: roll_back_failed(session, agent_id, failed_id, candidate))
        if state.events:
            log.warning(
                "Production had failed; what served before serves again, and automatic promotion is paused.",
                action="janitor.rolled_back",
                agent=state.agent.name,
                failed=failed_id,
                deployment=candidate.deployment_id,
                generation=state.agent.generation,
            )

    async def _do(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """What comes of a transaction; only so many at a time, since there are only so many connections."""
        async with self._connections:
            return await in_transaction(self._sessions, work)


def _tell(state: AgentSnapshot, deployment: DeploymentState) -> None:
    who = {"agent": state.agent.name, "deployment": deployment.id, "production": deployment.is_production}
    if deployment.status == "Failed":
        log.warning("A deployment was found not to work.", action="janitor.failed", why=deployment.status_reason, **who)
    else:
        log.info("A deployment has answered.", action="janitor.ready", **who)


def _lost(deployment_id: str, error: Exception) -> None:
    log.warning(
        "A verdict could not be given; there will be another.",
        action="janitor.verdict_lost",
        deployment=deployment_id,
        error=f"{type(error).__name__}: {error}"[:300],
    )
