from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from services.settings import Settings
from services.storage.database import Sessions
from tests.integration.api.client import Api, running_api
from tests.integration.api.pods import Pod, running_pod
from tests.support.instances import Instances

Serve = Callable[..., Awaitable[Api]]


@pytest_asyncio.fixture
async def serve(settings: Settings) -> AsyncIterator[Serve]:
    """A function that starts an API on this test's database with changed settings; each call starts another API."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> Api:
            return await stack.enter_async_context(running_api(settings.model_copy(update=changes)))

        yield start


@pytest_asyncio.fixture
async def api(serve: Serve) -> Api:
    """An API on loopback without a key."""
    return await serve()


@pytest_asyncio.fixture
async def pod() -> AsyncIterator[Pod]:
    """A pod with the same answer to every request."""
    async with running_pod() as pod:
        yield pod


@pytest.fixture
def instances(sessions: Sessions) -> Instances:
    """Writes instances into this test's database."""
    return Instances(sessions)
