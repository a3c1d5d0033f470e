"""The state of the system as far as the database knows it: what waits, since when, and who does the work."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.events.outbox import RELAY_SESSION
from services.health.janitors import JanitorReport, living_janitors

# How many rows are counted at most.
COUNTED_MAX = 100_000
# Of how many of the newest announcements the wait is shown, and how old they may be.
NEWEST = 200
RECENT = timedelta(minutes=10)

_STATE = text(f"""
SELECT
    (SELECT count(*) FROM (SELECT FROM outbox WHERE published_at IS NULL LIMIT :most) AS e) AS events_waiting,
    (SELECT created_at FROM outbox WHERE published_at IS NULL ORDER BY id LIMIT 1) AS oldest_event_at,
    EXISTS ({RELAY_SESSION}) AS relay_runs,
    (SELECT count(*) FROM (SELECT FROM probes WHERE due_at < statement_timestamp() - interval '2 minutes' LIMIT :most)
        AS p) AS probes_late,
    (SELECT count(*) FROM (SELECT FROM parked LIMIT :most) AS p) AS parked,
    (SELECT count(*) FROM (SELECT FROM deployments WHERE draining_since IS NOT NULL LIMIT :most) AS d) AS draining,
    statement_timestamp() AS read_at
""")  # noqa: S608 - composed of constants
_WAITS = text("""
SELECT max(received_at) AS newest_at, count(*) AS announcements,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY wait) AS median, max(wait) AS longest
FROM (
    SELECT received_at, greatest(received_at - coalesce(dated_at, registered_at), interval '0') AS wait
    FROM registrations
    WHERE registered_at IS NOT NULL AND received_at > statement_timestamp() - CAST(:recent AS interval)
    ORDER BY received_at DESC LIMIT :newest
) AS newest
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """How long the newest announcements waited from the pod's clock to the decision; None where there are none."""

    newest_at: datetime | None
    announcements: int
    median: timedelta | None
    longest: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemState:
    """What waits in the database, and the janitors that run. Counts end at 100,000."""

    events_waiting: int
    oldest_event_at: datetime | None
    relay_runs: bool
    probes_late: int
    parked: int
    draining: int
    read_at: datetime
    waits: Waits
    janitors: list[JanitorReport]


async def system_state(session: AsyncSession) -> SystemState:
    """The state now. Events that the broker does not have, probes more than two minutes late, parked messages."""
    row = (await session.execute(_STATE, {"most": COUNTED_MAX})).one()
    waits = (await session.execute(_WAITS, {"recent": RECENT, "newest": NEWEST})).one()
    return SystemState(
        **row._mapping,  # noqa: SLF001 - public API of SQLAlchemy
        waits=Waits(**waits._mapping),  # noqa: SLF001 - as above
        janitors=await living_janitors(session),
    )
