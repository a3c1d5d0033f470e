from collections.abc import AsyncIterator

import pytest_asyncio

from services.database import Sessions
from tests.integration.services.world import World
from tests.invariants import assert_invariants


@pytest_asyncio.fixture
async def world(sessions: Sessions) -> AsyncIterator[World]:
    """An empty database; whatever the test did to it, the invariants must hold at its end."""
    world = World(sessions)
    yield world
    await world.do(assert_invariants)
