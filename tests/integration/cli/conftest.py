from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.settings import Settings
from tests.integration.api.client import Api, running_api
from tests.integration.cli.terminal import Terminal


@pytest_asyncio.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """An API with the database of this test."""
    async with running_api(settings) as api:
        yield api


@pytest.fixture
def terminal(api: Api, settings: Settings, tmp_path: Path) -> Terminal:
    """A shell in an empty directory, with the addresses of the API and the broker."""
    return Terminal(tmp_path, {"PODIUM_API_URL": api.url, "PODIUM_AMQP_URL": settings.amqp_url.get_secret_value()})
