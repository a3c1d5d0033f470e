"""Podium's programs as separate processes, as users run them."""

import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import aiohttp

from podium.servers.ports import free_ports
from podium.servers.process import Command, GuardedProcess, Launch, ProcessContext, start
from services.settings import Settings
from tests.support.forked_programs import ForkedPrograms, forked_programs
from tests.support.waiting import eventually

# Of the clock that counts CPU time.
TICKS = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parent.parent.parent


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """The environment variables that a Podium process needs to use this test's servers."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PODIUM_")},
        "PODIUM_DATABASE_URL": settings.database_url.get_secret_value(),
        "PODIUM_AMQP_URL": settings.amqp_url.get_secret_value(),
        "PODIUM_SECRET_KEY": settings.secret_key.get_secret_value(),
        "PODIUM_LOG_LEVEL": "warning",
        **more,
    }


# One while tests run. Measurements start new processes only.
_forks: list[ForkedPrograms] = []


@contextmanager
def forks_allowed() -> Iterator[None]:
    """Have Podium's programs start as forks, which saves each two seconds, unless a test asks for a new process."""
    with forked_programs() as programs:
        _forks.append(programs)
        yield
        _forks.remove(programs)


@asynccontextmanager
async def program(arguments: str, env: dict[str, str], log: Path) -> AsyncIterator[GuardedProcess]:
    """`python -m ARGUMENTS` while inside, then a graceful stop; its output goes to `log`."""
    command = Command([sys.executable, "-m", *arguments.split()], env, ROOT)
    if _forks and _forks[0].can_start(command):
        process = await _forks[0].start(command, log)
    else:
        process = await start(Launch(command), ProcessContext(None, log))
    try:
        yield process
    finally:
        await process.stop()


@asynccontextmanager
async def api_at_once(settings: Settings, folder: Path, **more: str) -> AsyncIterator[str]:
    """The base URL of a `podium api` that responds, ready or not."""
    port = free_ports(["api"])["api"]
    log = folder / f"api-{port}.log"
    async with program("podium api", environment(settings, PODIUM_PORT=str(port), **more), log) as process:
        url = f"http://127.0.0.1:{port}"

        async def answers() -> bool:
            assert process.code is None, log.read_text()
            return await _status(f"{url}/health/live") == 200

        await eventually(answers, "the API answers")
        yield url


@asynccontextmanager
async def api_process(settings: Settings, folder: Path, **more: str) -> AsyncIterator[str]:
    """The base URL of a `podium api` that is ready."""
    async with api_at_once(settings, folder, **more) as url:

        async def ready() -> bool:
            return await _status(f"{url}/health/ready") == 200

        await eventually(ready, "the API is ready")
        yield url


def megabytes(pid: int, field: str) -> float:
    """Resident memory of a process: now (`VmRSS`) or at most so far (`VmHWM`)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used, from proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def _status(url: str) -> int | None:
    """The status of the response; None while nothing responds."""
    try:
        async with aiohttp.ClientSession() as client, client.get(url) as response:
            return response.status
    except aiohttp.ClientError:
        return None


@asynccontextmanager
async def worker_process(
    settings: Settings, folder: Path, names: str = "", **more: str
) -> AsyncIterator[GuardedProcess]:
    """A `podium worker` process; it may still be starting."""
    log = folder / f"worker-{uuid4().hex}.log"
    async with program(f"podium worker {names}", environment(settings, **more), log) as process:
        yield process
