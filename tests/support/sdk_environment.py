"""A separate Python environment for the SDKs whose clients and servers the tests use."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from podium.servers.process import Command, GuardedProcess, Launch, ProcessContext, start
from tests.support.processes import ROOT
from tests.support.waiting import eventually

LOCK = ROOT / "requirements-sdk.lock"
ENVIRONMENT = ROOT / ".venv-sdk"
STAMP = ENVIRONMENT / "lock.sha256"
PYTHONS = ("python3.12", "python3.13", "python3.14")
INSTALL_SECONDS = 540
# Importing an SDK takes seconds on a busy machine.
STARTING_SECONDS = 90
DRIVING_SECONDS = 120


def made_environment() -> str | None:
    """The Python of the environment, created once from its lock file; None if this machine has no Python for it."""
    lock_digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    python = ENVIRONMENT / "bin" / "python"
    with LOCK.open() as lock:  # several processes of one test run may need it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.exists() and STAMP.read_text() == lock_digest:
            return str(python)
        base = _new_enough_python()
        if base is None:
            return None
        subprocess.run([base, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(LOCK)]
        subprocess.run(install, check=True, timeout=INSTALL_SECONDS)
        STAMP.write_text(lock_digest)
    return str(python)


@asynccontextmanager
async def sdk_pod(python: str, program: str, port: int, folder: Path, **env: str) -> AsyncIterator[GuardedProcess]:
    """A pod of `tests/sdk` that listens on this port."""
    log = folder / f"pod-{port}.log"
    command = Command([python, str(ROOT / "tests/sdk" / program)], {**os.environ, **env}, folder)
    pod = await start(Launch(command), ProcessContext(None, log))

    async def listens() -> bool:
        assert pod.code is None, log.read_text()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await eventually(listens, f"{program} listens", seconds=STARTING_SECONDS)
        yield pod
    finally:
        await pod.kill()


async def driven(python: str, program: str, *arguments: str) -> Any:
    """The JSON that a client of `tests/sdk` printed; it must exit with 0."""
    client = await asyncio.create_subprocess_exec(
        python, str(ROOT / "tests/sdk" / program), *arguments, stdout=subprocess.PIPE
    )
    try:
        printed, _ = await asyncio.wait_for(client.communicate(), DRIVING_SECONDS)
    finally:
        if client.returncode is None:
            client.kill()
            await client.wait()
    assert client.returncode == 0
    return json.loads(printed)


def _new_enough_python() -> str | None:
    """A Python that the SDKs support, on the path or installed by pyenv."""
    kept = sorted(Path.home().glob(".pyenv/versions/3.1[2-4].*/bin/python3"))
    for candidate in [*(found for name in PYTHONS if (found := shutil.which(name))), *map(str, kept)]:
        if subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None
