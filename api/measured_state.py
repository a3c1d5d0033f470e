"""What a scrape of this process reads anew: whether it is ready, and which agents were deleted."""

import asyncio

from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy.exc import SQLAlchemyError

from api.resources import Resources
from services.agents.metrics import forget_deleted

LIMIT_SECONDS = 1.0


class MeasuredState:
    """The gauges of one API process that are set at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ready = Gauge("podium_api_ready", "1 if this process is ready: the database answers.", registry=registry)

    async def refresh(self, resources: Resources) -> None:
        """Read the state. Does not fail if the database cannot be reached."""
        failure, _ = await asyncio.gather(resources.database.failure(), _forget_deleted(resources))
        self._ready.set(failure is None)


async def _forget_deleted(resources: Resources) -> None:
    try:
        async with asyncio.timeout(LIMIT_SECONDS), resources.reads() as session:
            await forget_deleted(session, resources.agents_measured)
    except (TimeoutError, SQLAlchemyError, OSError):
        pass  # they are looked for again at a later scrape
