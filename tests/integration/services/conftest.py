from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from services.settings import Settings
from services.storage.database import Sessions, make_engine
from tests.conftest import TestServers
from tests.integration.services.world import World
from tests.support.databases import a_database, empty
from tests.support.invariants import assert_invariants

MOST_AT_ONCE = 20


@pytest_asyncio.fixture(scope="session")
async def settings(servers: TestServers, template: str) -> AsyncIterator[Settings]:
    """Settings for the database that these tests share; each test starts with empty tables."""
    async with a_database(servers.database_url, template) as url:
        yield Settings(database_url=SecretStr(url.render_as_string(hide_password=False)))


@pytest_asyncio.fixture(scope="session")
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """An engine on that database."""
    engine = make_engine(settings, application_name="tests", pool_size=MOST_AT_ONCE)
    yield engine
    await engine.dispose()


@pytest_asyncio.fixture(scope="module")
async def filled(servers: TestServers, template: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a database for one module to fill, so its statistics do not affect the plans of others."""
    async with a_database(servers.database_url, template) as url:
        settings = Settings(database_url=SecretStr(url.render_as_string(hide_password=False)))
        engine = make_engine(settings, application_name="tests")
        yield engine
        await engine.dispose()


@pytest.fixture(scope="session")
def sessions(engine: AsyncEngine) -> Sessions:
    """Sessions on that database."""
    return Sessions(engine)


@pytest_asyncio.fixture
async def world(sessions: Sessions, engine: AsyncEngine) -> AsyncIterator[World]:
    """An empty database; at the end of the test, the invariants must hold."""
    await empty(engine)
    world = World(sessions)
    yield world
    await world.do(assert_invariants)
