"""Folders that only root can enter, and people who are not root."""

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
from tests.integration.servers import holding
from tests.integration.servers.observing import alive, below, is_root, owners, until

pytestmark = pytest.mark.skipif(not is_root(), reason="only root can change accounts")

NOBODY = 65_534


@pytest.fixture
def root_only() -> Iterator[Path]:
    """What `mktemp -d` makes for root; the data kept elsewhere for it are removed too."""
    folder = Path(tempfile.mkdtemp(prefix="podium-root-only-"))
    yield folder
    for note in folder.glob("servers"):
        elsewhere = _named_in(note)
        assert elsewhere.is_relative_to("/var/lib/podium")
        shutil.rmtree(elsewhere)
    shutil.rmtree(folder)


async def test_a_folder_that_only_root_can_enter(root_only: Path, without_rabbitmq: dict[str, str]) -> None:
    """The data go to /var/lib/podium, a note says so, and the next start finds them."""
    async with private_servers(root_only, durable=False, environ=without_rabbitmq) as first:
        connection = await asyncpg.connect(first.database_url)
        await connection.execute("CREATE TABLE kept ()")
        await connection.close()
    elsewhere = _named_in(root_only / "servers")
    assert (elsewhere / "postgres" / "data" / "PG_VERSION").exists()
    assert not (root_only / "postgres").exists()
    async with private_servers(root_only, durable=False, environ=without_rabbitmq) as second:
        connection = await asyncpg.connect(second.database_url)
        assert await connection.fetchval("SELECT count(*) FROM kept") == 0
        await connection.close()


async def test_a_folder_that_was_closed_later(data_dir: Path, without_rabbitmq: dict[str, str]) -> None:
    """The data are not abandoned silently: a sentence says what to do."""
    async with private_servers(data_dir, durable=False, environ=without_rabbitmq):
        pass
    data_dir.chmod(0o700)
    with pytest.raises(ServersError, match="cannot enter any more"):
        async with private_servers(data_dir, environ=without_rabbitmq):
            pytest.fail("should not start")


async def test_an_ordinary_user(data_dir: Path) -> None:
    """Both servers run as the user, from the programs that the packages installed; SIGTERM ends all."""
    home = data_dir.parent / "home"
    home.mkdir()
    shutil.copytree(Path(podium.__file__).parent / "servers", home / "podium" / "servers")
    (home / "podium" / "__init__.py").touch()
    shutil.copy(holding.__file__, home / "holding.py")
    os.chown(home, NOBODY, NOBODY)
    user = await asyncio.create_subprocess_exec(
        _python_for_all(),
        str(home / "holding.py"),
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

    await until(lambda: not alive(processes), "all processes are gone")


def _named_in(note: Path) -> Path:
    return next(Path(word.rstrip(":")) for word in note.read_text().split() if word.startswith("/var"))


def _python_for_all() -> str:
    """A Python that other accounts can execute; the one of a root's home cannot be entered by them."""
    ask = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            tried = subprocess.run([python, "-I", "-c", ask], user=NOBODY, group=NOBODY, extra_groups=[], check=False)
        except OSError:
            continue
        if tried.returncode == 0:
            return python
    pytest.skip("no Python of this machine is executable for other accounts than root")
