import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def new_data_dir() -> Iterator[Callable[[], Path]]:
    """Returns paths for new data directories, in a folder that every account can enter."""
    folder = Path(tempfile.mkdtemp(prefix="podium-servers-"))
    folder.chmod(0o755)
    numbers = itertools.count(1)
    yield lambda: folder / str(next(numbers))
    shutil.rmtree(folder)


@pytest.fixture
def data_dir(new_data_dir: Callable[[], Path]) -> Path:
    """The path for a new data directory."""
    return new_data_dir()


@pytest.fixture
def without_rabbitmq() -> dict[str, str]:
    """An environment in which only PostgreSQL starts, which is faster."""
    return {**os.environ, "PODIUM_AMQP_URL": "amqp://elsewhere/"}
