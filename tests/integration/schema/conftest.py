from collections.abc import AsyncIterator

import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.storage.models import Base
from tests.conftest import TestServers
from tests.support.databases import a_database


@pytest_asyncio.fixture(scope="module")
async def migrated(servers: TestServers, template: str) -> AsyncIterator[AsyncEngine]:
    """A database created by the migrations."""
    async with a_database(servers.database_url, template) as url:
        engine = create_async_engine(url)
        yield engine
        await engine.dispose()


@pytest_asyncio.fixture(scope="module")
async def modelled(servers: TestServers) -> AsyncIterator[AsyncEngine]:
    """A database created from the models."""
    async with a_database(servers.database_url) as url:
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield engine
        await engine.dispose()
