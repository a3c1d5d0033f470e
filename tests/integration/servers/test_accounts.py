"""Data directories that only root can enter, and a user who is not root."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

import podium
from podium.servers import ServersError, private_servers
from tests.integration.servers import servers_program
from tests.integration.servers.process_tree import alive, below, is_root, owners, until

pytestmark = pytest.mark.skipif(not is_root(), reason="only root can switch accounts")

NOBODY = 65_534


@pytest.fixture
def root_only() -> Iterator[Path]:
    """A folder as `mktemp -d` creates it for root. Removes also the data stored elsewhere for it."""
    folder = Path(tempfile.mkdtemp(prefix="podium-root-only-"))
    yield folder
    for note in folder.glob("servers"):
        elsewhere = _folder_named_in(note)
        assert elsewhere.is_relative_to("/var/lib/podium")
        shutil.rmtree(elsewhere)
    shutil.rmtree(folder)


async def test_a_folder_that_only_root_can_enter(root_only: Path, without_rabbitmq: dict[str, str]) -> None:
    """The data are stored in /var/lib/podium, a note names the folder, and the next start uses it."""
    async with private_servers(root_only, durable=False, environ=without_rabbitmq) as first:
        connection = await asyncpg.connect(first.database_url)
        await connection.execute("CREATE TABLE kept ()")
        await connection.close()
    elsewhere = _folder_named_in(root_only / "servers")
    assert (elsewhere / "postgres" / "data" / "PG_VERSION").exists()
    assert not (root_only / "postgres").exists()
    async with private_servers(root_only, durable=False, environ=without_rabbitmq) as second:
        connection = await asyncpg.connect(second.database_url)
        assert await connection.fetchval("SELECT count(*) FROM kept") == 0
        await connection.close()


async def test_a_folder_that_became_inaccessible(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """The data are not replaced by new ones: the error says what to do."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq):
        pass
    data_dir.chmod(0o700)
    with pytest.raises(ServersError, match="can no longer enter this folder"):
        async with private_servers(data_dir, environ=without_rabbitmq):
            pytest.fail("should not start")


async def test_an_ordinary_user(data_dir: Path) -> None:
    """Both servers run as the user, from the installed packages. SIGTERM ends all processes."""
    home = data_dir.parent / "home"
    home.mkdir()
    shutil.copytree(Path(podium.__file__).parent / "servers", home / "podium" / "servers")
    (home / "podium" / "__init__.py").touch()
    shutil.copy(servers_program.__file__, home / "servers_program.py")
    os.chown(home, NOBODY, NOBODY)
    user = await asyncio.create_subprocess_exec(
        _python_for_all(),
        str(home / "servers_program.py"),
        str(home / ".podium"),
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(home)},
        cwd=home,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        stdout=asyncio.subprocess.PIPE,
    )
    assert user.stdout is not None
    connection = await asyncpg.connect(json.loads(await user.stdout.readline())["database_url"])
    await connection.close()
    processes = below(user.pid)
    assert {"postgres", "epmd"} <= set(processes.values())
    assert owners(processes) == {NOBODY}

    user.terminate()
    await user.wait()

    await until(lambda: not alive(processes), "all processes have ended")


def _folder_named_in(note: Path) -> Path:
    return next(Path(word.rstrip(":")) for word in note.read_text().split() if word.startswith("/var"))


def _python_for_all() -> str:
    """A Python that other accounts can execute, which they cannot if it is in the home of root."""
    program = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            tried = subprocess.run(
                [python, "-I", "-c", program], user=NOBODY, group=NOBODY, extra_groups=[], check=False
            )
        except OSError:
            continue
        if tried.returncode == 0:
            return python
    pytest.skip("this machine has no Python that other accounts than root can execute")
