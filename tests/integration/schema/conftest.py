from collections.abc import AsyncIterator
from uuid import uuid4

import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.database import async_url
from services.models import Base
from tests.conftest import TestServers


async def run_alone(servers: TestServers, statement: str) -> None:
    """Run what cannot run inside a transaction."""
    engine = create_async_engine(async_url(servers.database_url), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


@pytest_asyncio.fixture(scope="module")
async def migrated(servers: TestServers, template: str) -> AsyncIterator[AsyncEngine]:
    """A database that the migrations made."""
    name = f"podium_migrated_{uuid4().hex}"
    await run_alone(servers, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    engine = create_async_engine(make_url(async_url(servers.database_url)).set(database=name))
    yield engine
    await engine.dispose()
    await run_alone(servers, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest_asyncio.fixture(scope="module")
async def modelled(servers: TestServers) -> AsyncIterator[AsyncEngine]:
    """A database that the models made."""
    name = f"podium_modelled_{uuid4().hex}"
    await run_alone(servers, f'CREATE DATABASE "{name}"')
    engine = create_async_engine(make_url(async_url(servers.database_url)).set(database=name))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()
    await run_alone(servers, f'DROP DATABASE "{name}" WITH (FORCE)')
