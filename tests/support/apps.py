"""API servers inside the process of a test. Building all routes takes ten times as long as a request: they are kept."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.datastructures import State
from litestar.types import ASGIApp

from api.app import ApiServer, make_server, route
from services.settings import Settings

# Stopped applications, by whether keys are required, with the handler that they were made with.
_idle: dict[bool, list[tuple[Litestar, ASGIApp]]] = defaultdict(list)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[ApiServer]:
    """An API under a real uvicorn, which listens. Nothing but its routes has served before."""
    idle = _idle[settings.keys_required]
    app, handler = idle.pop() if idle else _routed(settings)
    app.state, app.asgi_handler = State(), handler
    server = make_server(settings, app)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:
                assert not task.done(), "the server ended"
                await asyncio.sleep(0.005)
        yield server
    finally:
        server.stop()
        async with asyncio.timeout(10):
            await task
            if server.force_exit:  # uvicorn leaves the resources to the end of the process
                await server.lifespan.shutdown()
    if not server.force_exit:
        idle.append((app, handler))


def _routed(settings: Settings) -> tuple[Litestar, ASGIApp]:
    app = route(keys_required=settings.keys_required)
    return app, app.asgi_handler
