"""A relay freezes for a while: another one takes over, and the first one resumes without harm."""

import asyncio
import os
import signal
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from tests.chaos.size import SIZE
from tests.chaos.system import System
from tests.chaos.traffic import all_events_in_order, pods_of, until_quiet
from tests.support.factories import incoming
from tests.support.waiting import eventually_rows

TAKEOVER_SECONDS = 6


async def test_a_frozen_relay_is_replaced_and_wakes_without_harm(system: System) -> None:
    """The second relay publishes within six seconds; when the first one resumes, events stay in order."""
    async with (
        system.worker("relay", PODIUM_RELAY_BATCH_SIZE="50") as first,
        system.worker("registrar"),
        pods_of(system) as pods,
    ):
        await system.until_logged("relay.started")
        async with system.worker("relay"):
            await system.until_logged("relay.standing_by")
            await pods.publish([incoming(f"bot-{n % 20}", deployment_id=f"a-{n}") for n in range(500)])
            await eventually_rows(system.sessions, "SELECT 1 FROM outbox WHERE published_at IS NOT NULL")
            os.kill(first.pid, signal.SIGSTOP)
            frozen, frozen_at = monotonic(), datetime.now(UTC)
            try:
                await pods.publish([incoming(f"bot-{n % 20}", deployment_id=f"b-{n}") for n in range(100)])
                await until_quiet(system, 600, seconds=20)
                took = (max(map(_moment, system.logged("relay.started"))) - frozen_at).total_seconds()
                assert 0 < took < TAKEOVER_SECONDS
                count = 600
                while monotonic() < frozen + SIZE.frozen:
                    await pods.publish([incoming(f"bot-{count % 20}", deployment_id=f"c-{count}")])
                    count += 1
                    await asyncio.sleep(0.05)
            finally:
                os.kill(first.pid, signal.SIGCONT)
            await system.until_logged("relay.disconnected", server="PostgreSQL")
            await pods.publish([incoming(f"bot-{n % 20}", deployment_id=f"d-{n}") for n in range(100)])
            await until_quiet(system, count + 100)
    events = await all_events_in_order(system)
    print(f"taken over after {took:.1f} s; {len(events)} events received")  # noqa: T201 - figures


def _moment(line: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(line["timestamp"])
