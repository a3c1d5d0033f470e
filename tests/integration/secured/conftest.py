import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.support.secured_servers import SecuredServers, secured_servers


@pytest_asyncio.fixture(scope="session")
async def secured() -> AsyncIterator[SecuredServers]:
    """Servers that also speak TLS, for all tests of one process."""
    with tempfile.TemporaryDirectory(prefix="podium-secured-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        async with secured_servers(Path(folder)) as servers:
            yield servers
