"""Announcements of a pod whose clock is an hour fast or slow."""

from datetime import UTC, datetime
from functools import partial

from services.registration.batch import Incoming, register_batch
from services.storage.database import Sessions, in_transaction
from tests.support.factories import ago, incoming
from tests.support.waiting import rows

HOUR = 3600
ADDRESS = "SELECT acp_url, registered_at, status, is_production FROM deployments WHERE id = :id"


async def decided(sessions: Sessions, message: Incoming) -> str:
    """Decide a message; returns the name of its outcome."""
    (result,) = await in_transaction(sessions, partial(register_batch, batch=[message]))
    return type(result.outcome).__name__


async def test_a_clock_that_runs_ahead_wins_nothing_for_later(sessions: Sessions) -> None:
    """A future time counts as the time of arrival, so the next announcement with a correct clock is newer."""
    ahead = incoming("bot", deployment_id="v1", acp_url="http://ahead", registered_at=ago(-HOUR))
    assert await decided(sessions, ahead) == "Registered"
    (row,) = await rows(sessions, ADDRESS, id="v1")
    assert abs((datetime.now(UTC) - row.registered_at).total_seconds()) < 30
    assert await decided(sessions, incoming("bot", deployment_id="v1", acp_url="http://right")) == "Registered"
    assert (await rows(sessions, ADDRESS, id="v1"))[0].acp_url == "http://right"


async def test_a_clock_that_is_behind_serves_as_long_as_it_is_alone(sessions: Sessions) -> None:
    """A new deployment becomes Ready and is promoted; after an announcement with a correct clock, a slow one is Stale.

    So a deployment whose pod moves to a machine with a slow clock keeps its old address until the pod announces itself
    with a correct clock. 'podium registrations' shows why.
    """
    behind = partial(incoming, "bot", registered_at=ago(HOUR))
    assert await decided(sessions, behind(deployment_id="v1", acp_url="http://behind")) == "Registered"
    (row,) = await rows(sessions, ADDRESS, id="v1")
    assert (row.acp_url, row.status, row.is_production) == ("http://behind", "Ready", True)
    assert await decided(sessions, incoming("bot", deployment_id="v1", acp_url="http://right")) == "Registered"
    assert await decided(sessions, behind(deployment_id="v1", acp_url="http://behind.again")) == "Stale"
    assert (await rows(sessions, ADDRESS, id="v1"))[0].acp_url == "http://right"
    (last,) = await rows(sessions, "SELECT outcome FROM registrations ORDER BY seq DESC LIMIT 1")
    assert last.outcome == "Stale"
