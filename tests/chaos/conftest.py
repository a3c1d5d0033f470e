import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from podium.servers import private_servers
from tests.chaos.size import LIMIT_SECONDS
from tests.chaos.system import ServerPair, System, new_system, prepared_servers

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests a longer time limit than other tests."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(LIMIT_SECONDS))


@pytest.fixture(scope="package")
def data_dir() -> Iterator[Path]:
    """The servers' data directory, which their unprivileged account can enter."""
    folder = Path(tempfile.mkdtemp(prefix="podium-chaos-"))
    folder.chmod(0o755)
    yield folder / "servers"
    shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="package")
async def server_pair(data_dir: Path) -> AsyncIterator[ServerPair]:
    """Servers that tests may break."""
    async with private_servers(data_dir, durable=False) as servers, prepared_servers(servers) as server_pair:
        yield server_pair
        await server_pair.repair()


@pytest_asyncio.fixture
async def system(server_pair: ServerPair, tmp_path: Path) -> AsyncIterator[System]:
    """An empty database and empty queues for one test, on servers that it may break."""
    async with new_system(server_pair, tmp_path, f"chaos_{uuid4().hex}") as system:
        yield system
