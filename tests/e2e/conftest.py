import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from services.settings import Settings
from tests.support.processes import api_process
from tests.support.sdk_environment import made_environment, newer_python


@pytest_asyncio.fixture
async def two_apis(settings: Settings, tmp_path: Path) -> AsyncIterator[list[str]]:
    """The URLs of two API processes on one database."""
    async with api_process(settings, tmp_path) as first, api_process(settings, tmp_path) as second:
        yield [first, second]


@pytest_asyncio.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without a limit on connections."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        yield client


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the servers' unprivileged account can enter."""
    with tempfile.TemporaryDirectory(prefix="podium-up-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def sdk_python() -> str:
    """The Python of the environment with agentex-sdk, a2a-sdk and MCP 1.x."""
    base = newer_python()
    if base is None:
        pytest.skip("the SDKs need Python 3.12 or newer, which this machine does not have")
    return made_environment("sdk", base)


@pytest.fixture(scope="session")
def mcp2_python() -> str:
    """The Python of the environment with MCP 2.x, which cannot share one with MCP 1.x."""
    return made_environment("mcp2", sys.executable)
