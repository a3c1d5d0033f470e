"""A gate that holds registrars in their COMMIT, before the acknowledgement, for as long as a test needs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import text

from services.storage.database import Sessions
from tests.support.waiting import eventually_rows

GATE = 715
_FUNCTION = text(f"""
CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NULL; END $$
""")
_TRIGGER = text("""
CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON registrations DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION wait_at_the_gate()
""")
_WAITING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND wait_event = 'advisory' AND application_name = 'podium-registrar'
"""


@dataclass(frozen=True)
class Gate:
    """A closed gate: commits of registrars wait for it to open."""

    sessions: Sessions

    async def reached(self) -> None:
        """Wait until a registrar's COMMIT waits at the gate."""
        await eventually_rows(self.sessions, _WAITING)


async def build_gate(sessions: Sessions) -> None:
    """Install the trigger that makes every commit of a decision pass the gate."""
    async with sessions() as session, session.begin():
        await session.execute(_FUNCTION)
        await session.execute(_TRIGGER)


@asynccontextmanager
async def closed_gate(sessions: Sessions) -> AsyncIterator[Gate]:
    """Close the gate inside the context. Waiting transactions commit afterwards, even if their client is dead."""
    async with sessions() as holder, holder.begin():
        await holder.execute(text(f"SELECT pg_advisory_xact_lock({GATE})"))
        yield Gate(sessions)
