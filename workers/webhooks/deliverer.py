"""Delivers events to webhooks: at least once, each agent's events in sequence order.

Any number of processes can run it. Each event of an agent is claimed by one of them at a time; when a claim ends
without a result, another one sends the event again. The agent's next event is claimed only after the result was stored.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from services.errors import Busy, PodiumError
from services.events.outbox import WAKE_CHANNEL
from services.settings import Settings
from services.storage.database import Sessions, in_transaction, translate
from services.webhooks.deliveries import (
    Claim,
    Settled,
    claim,
    settle_accepted,
    settle_failed,
    settle_removed,
    webhooks_with_work,
)
from services.webhooks.disabling import Reason, disable
from services.webhooks.positions import HandedOut, hand_out, webhooks_behind
from services.webhooks.sender import GONE, Attempt, WebhookSender, open_webhook_sender
from workers.metrics import WorkerMetrics
from workers.retry import Outage, backoff, ended, pause, run_with_retries
from workers.webhooks.slots import Slots

# The session that reads, three results at a time, and the notification of the relay.
CONNECTIONS = 5
# Times the time limit of a delivery: how long a claim lasts, and how old it may be when its delivery begins. In between
# is the time to store the result.
LEASE_SHARE, BEGIN_SHARE = 2.0, 0.5
# Notifications come up to 200 times a second and process.
LINGER_SECONDS = 0.02
END_SECONDS = 1.0
# Whoever holds a position or a webhook for longer is in trouble.
LOCK_TIMEOUT = timedelta(milliseconds=250)

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Deliverer:
    """Delivers events until it is stopped."""

    def __init__(
        self, settings: Settings, engine: AsyncEngine, sessions: Sessions, metrics: WorkerMetrics | None = None
    ) -> None:
        self._settings = settings
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._sessions = sessions
        self._metrics = metrics or WorkerMetrics()
        self._outage = Outage(failure_action="webhooks.disconnected", recovery_action="webhooks.connected")
        self._metrics.watch("webhooks", self._outage)
        self._slots = Slots(settings.webhook_concurrency, settings.webhook_receiver_concurrency)
        self._lease = settings.webhook_timeout * LEASE_SHARE
        self._woken = asyncio.Event()
        self._wake_timer: asyncio.TimerHandle | None = None
        self._has_webhooks = True
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish what is under way; continues after the loss of the database."""
        own = [(self._settings.host, self._settings.port), (self._settings.worker_host, self._settings.worker_port)]
        async with open_webhook_sender(self._settings, *(each for each in own if each[1])) as sender:
            try:
                await run_with_retries(stop, partial(self._work, sender=sender), self._outage)
                if self._under_way:
                    await asyncio.wait(self._under_way)
            finally:
                for task in list(self._under_way):
                    await ended(task, END_SECONDS)

    async def _work(self, stop: asyncio.Event, sender: WebhookSender) -> None:
        async with self._session() as session:
            self._outage.over()
            while not stop.is_set():
                self._woken.clear()
                if not await self._pass(session, sender):
                    await pause(stop, self._settings.webhook_poll.total_seconds(), self._woken)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[AsyncConnection]:
        """A session in autocommit mode, on which notifications of new events wake this worker."""
        async with self._engine.connect() as session:
            driver = (await session.get_raw_connection()).driver_connection
            if driver is None:
                raise ConnectionError("The database session was lost.")

            await driver.add_listener(WAKE_CHANNEL, lambda *_: self._wake_soon())
            try:
                yield session
            finally:
                # Else the connection would go back to the pool with the listener.
                await session.invalidate()

    def _wake_soon(self) -> None:
        """Look for events a moment later, with all that come until then. Without webhooks, the poll is enough."""
        if self._has_webhooks and self._wake_timer is None:
            self._wake_timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._wake)

    def _wake(self) -> None:
        self._wake_timer = None
        self._woken.set()

    async def _pass(self, session: AsyncConnection, sender: WebhookSender) -> bool:
        """Hand out new events, and begin what is due and has a slot; whether to look again at once."""
        handed_out = await self._hand_out(session)
        self._has_webhooks = handed_out.has_webhooks
        webhooks = await webhooks_with_work(session)
        began = False
        for offer in (self._slots.for_prompt, self._slots.for_unproven, self._slots.for_retries):
            at, offered = monotonic(), offer(webhooks)
            for each in await claim(
                session, offered.free, total=offered.total, retries=offered.retries, lease=self._lease
            ):
                self._begin(each, at, sender)
                began = True
        return handed_out.has_more or began

    async def _hand_out(self, session: AsyncConnection) -> HandedOut:
        """Hand out new events. If somebody holds a position, those of its webhook alone wait."""
        if (handed_out := await _hand_out_if_free(session)) is not None:
            return handed_out
        one_by_one = [await _hand_out_if_free(session, each) for each in await webhooks_behind(session)]
        return HandedOut(has_webhooks=True, has_more=any(each is not None and each.has_more for each in one_by_one))

    def _begin(self, claimed: Claim, at: float, sender: WebhookSender) -> None:
        self._slots.take(claimed)
        task = asyncio.create_task(self._deliver(claimed, at, sender), name="webhook delivery")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _deliver(self, claimed: Claim, at: float, sender: WebhookSender) -> None:
        """Send one event and store the result. Nothing is sent under an old claim: somebody else may have it."""
        attempt: Attempt | None = None
        try:
            if monotonic() - at > self._settings.webhook_timeout.total_seconds() * BEGIN_SHARE:
                return
            if claimed.event_id is not None:
                attempt = await _attempt(claimed, sender)
                self._slots.learn(claimed.webhook_id, accepted=attempt.outcome == "accepted", seconds=attempt.seconds)
                self._metrics.webhook_deliveries.labels(attempt.outcome).inc()
                self._metrics.webhook_seconds.observe(attempt.seconds)
            await self._settle(claimed, attempt, at + self._lease.total_seconds())
        except Exception as error:  # noqa: BLE001 - whatever happens to one delivery, its claim ends and it is repeated
            log.warning(
                "The result of a delivery could not be stored; the event is sent again.",
                action="webhook.not_stored",
                webhook_id=str(claimed.webhook_id),
                error=f"{type(error).__name__}: {error}"[:300],
            )
        finally:
            self._slots.give_back(claimed)
            self._woken.set()

    async def _settle(self, claimed: Claim, attempt: Attempt | None, until: float) -> None:
        if attempt is None:
            await self._store(lambda session: settle_removed(session, claimed), until)
        elif attempt.outcome == "accepted":
            settled = await self._store(lambda session: settle_accepted(session, claimed, attempt), until)
            if settled.recovered:
                log.info("A webhook accepts events again.", action="webhook.recovered", **_about(claimed))
        else:
            wait = self._wait_after(claimed.attempt, attempt.retry_after)
            if attempt.status == GONE:
                wait = max(wait, self._lease)  # no other attempt while the webhook is being disabled
            settled = await self._store(lambda session: settle_failed(session, claimed, attempt, wait), until)
            if settled.began_failing:
                log.warning("A webhook did not accept an event.", action="webhook.failing", **_about(claimed, attempt))
            await self._disable_if_due(claimed, attempt, settled, until)

    async def _store(self, work: Callable[[AsyncSession], Awaitable[T]], until: float) -> T:
        """Store a result. While the database is away or a row is locked, tries again until the claim ends."""
        attempts = 0
        while True:
            try:
                return await in_transaction(self._sessions, work, seconds=max(until - monotonic(), END_SECONDS))
            except PodiumError:
                attempts += 1
                wait = backoff(attempts)
                if monotonic() + wait > until:
                    raise
                await asyncio.sleep(wait)

    async def _disable_if_due(self, claimed: Claim, attempt: Attempt, settled: Settled, until: float) -> None:
        reason: Reason | None = None
        if attempt.status == GONE:
            reason = "gone"
        elif settled.failing_for >= self._settings.webhook_disable_after:
            reason = "failing"
        if reason is None or not settled.stored:
            return
        work = partial(
            disable,
            webhook_id=claimed.webhook_id,
            agent_id=claimed.agent_id,
            reason=reason,
            failing_since=settled.failing_since,
        )
        if await self._store(work, until):
            log.error("A webhook is disabled.", action="webhook.disabled", reason=reason, **_about(claimed, attempt))

    def _wait_after(self, attempt: int, retry_after: timedelta | None) -> timedelta:
        """The wait before the next attempt: doubling, half of it random; longer if the receiver asks for it."""
        longest = self._settings.webhook_longest_retry
        doubled = self._settings.webhook_first_retry.total_seconds() * 2.0 ** min(attempt - 1, 40)
        ceiling = min(doubled, longest.total_seconds())
        wait = timedelta(seconds=ceiling * random.uniform(0.5, 1))  # noqa: S311 - jitter, not a secret
        return max(wait, min(retry_after or timedelta(0), longest))


async def _hand_out_if_free(session: AsyncConnection, only: UUID | None = None) -> HandedOut | None:
    """None if somebody holds a position for too long."""
    try:
        return await hand_out(session, only)
    except DBAPIError as error:
        if not isinstance(translate(error), Busy):
            raise
        return None


async def _attempt(claimed: Claim, sender: WebhookSender) -> Attempt:
    if claimed.delivery is None:
        return Attempt("failed", "the event cannot be encoded", 0.0)
    return await sender.send(claimed.delivery)


def _about(claimed: Claim, attempt: Attempt | None = None) -> dict[str, object]:
    """What log lines say of a delivery."""
    about: dict[str, object] = {
        "webhook_id": str(claimed.webhook_id),
        "agent": claimed.agent_name,
        "event_id": str(claimed.event_id),
    }
    if attempt is not None:
        about |= {"outcome": attempt.outcome, "status": attempt.status, "detail": attempt.detail}
    return about
