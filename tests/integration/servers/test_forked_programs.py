"""Programs that tests fork from one process run as `podium.servers.process.start` runs new ones."""

import os
import re
import signal
from pathlib import Path

from podium.servers.process import GuardedProcess
from services.settings import Settings
from tests.integration.servers.process_tree import alive
from tests.support.forked_programs import NEW_PROCESS
from tests.support.processes import environment, program, worker_process
from tests.support.waiting import eventually


def parent_of(pid: int) -> int:
    """The guard of a program."""
    found = re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


async def ready(worker: GuardedProcess) -> None:
    """Return once the worker handles SIGTERM."""
    bit = 1 << signal.SIGTERM - 1

    async def handles() -> bool:
        found = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{worker.pid}/status").read_text())
        assert found is not None
        return bool(int(found[1], 16) & bit)

    await eventually(handles, "the worker handles SIGTERM")


async def test_it_ends_like_a_new_process(settings: Settings, tmp_path: Path) -> None:
    """Exit codes, signals, and the log; it leads a session of its own."""
    for name, more in (("forked", {}), ("new", NEW_PROCESS)):
        log = tmp_path / name
        async with program("podium worker nobody", environment(settings, **more), log) as wrong:
            assert await wrong.ended() == 2
        assert "there is no worker nobody" in log.read_text()
        async with worker_process(settings, tmp_path, "janitor", **more) as worker:
            assert os.getsid(worker.pid) == worker.pid
            assert os.getsid(parent_of(worker.pid)) == parent_of(worker.pid) != os.getsid(0)
            await ready(worker)
        assert worker.code == 0
        async with worker_process(settings, tmp_path, "janitor", **more) as worker:
            await worker.kill()
        assert worker.code == -signal.SIGKILL


async def test_it_gets_its_environment_and_no_other(tmp_path: Path) -> None:
    """What the process that forks has read of its own environment is not seen."""
    env = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    env["PODIUM_DATABASE_URL"] = "postgresql://u@h/d"
    async with program("podium api", env, tmp_path / "log") as process:
        assert await process.ended() == 2
    assert "PODIUM_SECRET_KEY is not set" in (tmp_path / "log").read_text()


async def test_it_ends_with_its_guard(settings: Settings, tmp_path: Path) -> None:
    """The kernel kills the program of a guard that was killed."""
    async with worker_process(settings, tmp_path, "janitor") as worker:
        os.kill(parent_of(worker.pid), signal.SIGKILL)
        assert await worker.ended() == -signal.SIGKILL
    assert not alive([worker.pid])
