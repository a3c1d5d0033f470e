"""Answered calls as proof of life: a deployment that answers calls is alive, whatever a probe says.

The gateway remembers which deployments have answered, and stores it once a second, apart from the calls. Only rows of
deployments whose last probe failed are written, so the calls of healthy deployments cost no write.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from time import monotonic

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.cancellation import background_task
from services.storage.database import Sessions, in_transaction

STORE_EVERY = timedelta(seconds=1)
# A verdict holds the lock of a row for milliseconds.
STORE_AGAIN = timedelta(seconds=0.1)
# Of how many pods one process remembers an answer between two writes.
MOST_PODS = 1000
# Deployment id, and instance id; that is empty for the only pod of a deployment.
PodKey = tuple[str, str]
# A server error may come from a proxy in front of the pod.
SERVER_ERRORS = 500

# The age of an answer, not its time: the clocks of the processes may differ. Rows that are locked are skipped, so that
# neither this statement nor a verdict waits for the other; they are returned.
_STORE = text("""
WITH given AS MATERIALIZED (
    SELECT r.id, r.instance_id, clock_timestamp() - make_interval(secs => r.age) AS answered_at
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id text, instance_id text, age double precision)
),
failing AS MATERIALIZED (
    SELECT p.deployment_id, p.instance_id, given.answered_at
    FROM given JOIN probes AS p ON p.deployment_id = given.id AND p.instance_id = given.instance_id
    WHERE p.streak < 0
    FOR NO KEY UPDATE OF p SKIP LOCKED
),
stored AS (
    UPDATE probes AS p SET last_call_at = greatest(p.last_call_at, failing.answered_at)
    FROM failing WHERE p.deployment_id = failing.deployment_id AND p.instance_id = failing.instance_id
)
SELECT p.deployment_id, p.instance_id
FROM given JOIN probes AS p ON p.deployment_id = given.id AND p.instance_id = given.instance_id
WHERE p.streak < 0
    AND NOT EXISTS (SELECT FROM failing WHERE (deployment_id, instance_id) = (p.deployment_id, p.instance_id))
""")


class AnsweredCalls:
    """The deployments that have answered a call since the last write."""

    def __init__(self) -> None:
        self._answered_at: dict[PodKey, float] = {}

    def record(self, deployment_id: str | None, instance_id: str, status: int) -> None:
        """Remember that this pod has answered now. Server errors and legacy addresses (None) do not count."""
        if deployment_id is None or status >= SERVER_ERRORS:
            return
        pod = (deployment_id, instance_id)
        if pod in self._answered_at or len(self._answered_at) < MOST_PODS:
            self._answered_at[pod] = monotonic()

    def take(self) -> dict[PodKey, float]:
        """By pod, how many seconds ago it has answered; forgets them."""
        now, answered_at, self._answered_at = monotonic(), self._answered_at, {}
        return {pod: now - at for pod, at in answered_at.items()}

    def put_back(self, ages: Mapping[PodKey, float]) -> None:
        """Remember answers of these ages, unless the pod has answered since."""
        now = monotonic()
        self._answered_at = {pod: now - age for pod, age in ages.items()} | self._answered_at


@asynccontextmanager
async def open_answered_calls(sessions: Sessions) -> AsyncGenerator[AnsweredCalls, None]:
    """Remembers answered calls and stores them until the end of the context.

    What a verdict has locked is stored a moment later; what the database refuses is dropped.
    """
    calls = AnsweredCalls()

    async def store_repeatedly() -> None:
        wait = STORE_EVERY
        while True:
            await asyncio.sleep(wait.total_seconds())
            ages, locked = calls.take(), dict[PodKey, float]()
            if ages:
                with suppress(Exception):  # the calls themselves show that the database is unavailable
                    locked = await in_transaction(sessions, lambda session, ages=ages: store_answered(session, ages))  # type: ignore[misc]
            calls.put_back(locked)
            wait = STORE_AGAIN if locked else STORE_EVERY

    async with background_task(store_repeatedly(), name="answered calls"):
        yield calls


async def store_answered(session: AsyncSession, ages: Mapping[PodKey, float]) -> dict[PodKey, float]:
    """Store the answers of those pods whose last probe failed; returns those whose rows another transaction has locked.

    Verdicts see the stored ones after the commit.
    """
    rows = [{"id": id_, "instance_id": instance_id, "age": age} for (id_, instance_id), age in sorted(ages.items())]
    locked = await session.execute(_STORE, {"rows": to_json(rows).decode()})
    return {(row.deployment_id, row.instance_id): ages[row.deployment_id, row.instance_id] for row in locked}
