"""The janitor: asks every deployment whether it lives, and sees to it that states between announcements are true.

Several of them, in any number of processes, are safe: each deployment is claimed by one of them at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import aiohttp
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from services.database import Sessions, in_transaction
from services.health import Suspect, changes_nothing
from services.probe import probe, probe_session
from services.probing import claim, expire_pending, give_verdict, overdue
from services.settings import Settings
from services.state import State
from services.wake import Waker
from workers.outage import Outage
from workers.pause import pause

# Connections of a janitor: one that claims, one for what is overdue, the others for verdicts.
CONNECTIONS = 6
VERDICTS_AT_ONCE = CONNECTIONS - 2
OVERDUE_AT_ONCE = 100

log = structlog.get_logger(__name__)
Verdict = Callable[[AsyncSession], Awaitable[tuple[State, State]]]


class Janitor:
    """Looks at what is due until told to stop."""

    def __init__(self, settings: Settings, sessions: Sessions, waker: Waker) -> None:
        self._settings = settings
        self._sessions = sessions
        self._waker = waker
        self._probes: set[asyncio.Task[None]] = set()
        self._verdicts = asyncio.Semaphore(VERDICTS_AT_ONCE)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; survives the loss of the database. What is being asked then is asked again."""
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(probe_session(self._settings.probe_concurrency))
            stack.push_async_callback(self._let_go)
            await asyncio.gather(
                self._repeat(stop, lambda: self._probe_due(http)),
                self._repeat(stop, self._expire_overdue),
            )

    async def _repeat(self, stop: asyncio.Event, duty: Callable[[], Awaitable[bool]]) -> None:
        """Do it again at once while it says that there may be more, else after a while."""
        outage = Outage(action="janitor.disconnected", back="janitor.connected")
        while not stop.is_set():
            try:
                more = await duty()
            except Exception as error:  # noqa: BLE001 - whatever it was, what is due stays due
                await pause(stop, outage.failed(error))
                continue
            outage.over()
            if not more:
                await pause(stop, self._settings.janitor_poll.total_seconds())

    async def _probe_due(self, http: aiohttp.ClientSession) -> bool:
        """Begin to ask those that are due; whether there may be more of them."""
        free = self._settings.probe_concurrency - len(self._probes)
        if free <= 0:
            await asyncio.wait(self._probes, return_when=asyncio.FIRST_COMPLETED)
            return True
        suspects = await in_transaction(self._sessions, lambda session: claim(session, self._settings, free))
        for suspect in suspects:
            task = asyncio.create_task(self._ask(http, suspect), name=f"probe {suspect.id}")
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)
        return len(suspects) == free

    async def _ask(self, http: aiohttp.ClientSession, suspect: Suspect) -> None:
        failure = await probe(http, suspect.url, suspect.agent_id, suspect.pace.timeout)
        if changes_nothing(suspect, failure):
            return
        async with self._verdicts:
            await self._judge(suspect.id, lambda session: give_verdict(session, suspect, failure))

    async def _expire_overdue(self) -> bool:
        """Set Failed what has been Pending for too long; whether there may be more of it."""
        deadline = self._settings.pending_deadline
        late = await in_transaction(self._sessions, lambda session: overdue(session, deadline, OVERDUE_AT_ONCE))
        for agent_id, deployment_id in late:
            await self._judge(
                deployment_id, partial(expire_pending, deployment=(agent_id, deployment_id), deadline=deadline)
            )
        return len(late) == OVERDUE_AT_ONCE

    async def _judge(self, deployment_id: str, verdict: Verdict) -> None:
        """Give a verdict; one that cannot be given now is given after the next look."""
        try:
            before, after = await in_transaction(self._sessions, verdict)
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing was changed
            log.warning(
                "A verdict could not be given; there will be another.",
                action="janitor.verdict_lost",
                deployment=deployment_id,
                error=f"{type(error).__name__}: {error}"[:300],
            )
        else:
            self._tell(before, after, deployment_id)

    def _tell(self, before: State, after: State, deployment_id: str) -> None:
        """Log a change of status, and wake the relay for its event."""
        if not after.events:
            return
        self._waker.wake()
        deployment = after.deployments[deployment_id]
        if before.deployments[deployment_id].status == deployment.status:
            return
        log.warning(
            "A deployment's status has changed.",
            action=f"janitor.{deployment.status.lower()}",
            agent=after.agent.name,
            deployment=deployment_id,
            production=deployment.is_production,
            why=deployment.status_reason,
        )

    async def _let_go(self) -> None:
        """End what is being asked: it is due again after one interval, here or elsewhere."""
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
