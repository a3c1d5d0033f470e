"""What a scrape of this process reads anew: whether it is ready, and which agents were deleted."""

import asyncio
from typing import Any

from litestar import Request
from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy.exc import SQLAlchemyError

from api.auth.guard import reads_all_agents
from api.resources import Resources, provide_resources
from services.agents.metrics import forget_deleted

LIMIT_SECONDS = 1.0


class Measured:
    """The metrics of one API process. Those of agents are apart, since not every caller may know the agents."""

    def __init__(self) -> None:
        self.registry, self.of_agents = CollectorRegistry(), CollectorRegistry()
        self.ready = Gauge("podium_api_ready", "1 if the database answers.", registry=self.registry)


async def scrape(request: Request[Any, Any, Any]) -> list[CollectorRegistry]:
    """What the caller may see, read anew. Does not fail if the database cannot be reached."""
    measured, resources = request.app.state.measured, provide_resources(request.app.state)
    assert isinstance(measured, Measured)
    failure, _ = await asyncio.gather(resources.database.failure(), _forget_deleted(resources))
    measured.ready.set(failure is None)
    if await reads_all_agents(request, resources):
        return [measured.registry, measured.of_agents]
    return [measured.registry]


async def _forget_deleted(resources: Resources) -> None:
    try:
        async with asyncio.timeout(LIMIT_SECONDS), resources.reads() as session:
            await forget_deleted(session, resources.agents_measured)
    except (TimeoutError, SQLAlchemyError, OSError):
        pass  # they are looked for again at a later scrape
