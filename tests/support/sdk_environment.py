"""Separate Python environments for the SDKs whose clients and servers the tests use, one for each lock file."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from podium.servers.process import Command, Launch, ProcessContext, start
from tests.support.processes import ROOT
from tests.support.waiting import eventually

PYTHONS = ("python3.12", "python3.13", "python3.14")
INSTALL_SECONDS = 540
# Importing an SDK takes seconds on a busy machine.
STARTING_SECONDS = 90
DRIVING_SECONDS = 120


def made_environment(name: str, base: str) -> str:
    """The Python of the environment `.venv-NAME`, created with the Python `base` from `requirements-NAME.lock`.

    An environment that was created from the same lock file is used again.
    """
    lock_file = ROOT / f"requirements-{name}.lock"
    environment = ROOT / f".venv-{name}"
    python = environment / "bin" / "python"
    stamp = environment / "lock.sha256"
    digest = hashlib.sha256(lock_file.read_bytes()).hexdigest()
    with lock_file.open() as lock:  # several processes of one test run may need it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == digest:
            return str(python)
        subprocess.run([base, "-m", "venv", "--clear", "--without-pip", str(environment)], check=True)
        install_locked(python, lock_file)
        stamp.write_text(digest)
    return str(python)


def install_locked(python: Path, lock_file: Path) -> None:
    """Install the locked packages for this Python: with uv in seconds, or with pip, whose settings uv does not read."""
    options = ["--quiet", "--require-hashes", "-r", str(lock_file)]
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--python", str(python), *options]
    if subprocess.run(uv, check=False, timeout=INSTALL_SECONDS).returncode != 0:
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *options]
        subprocess.run(pip, check=True, timeout=INSTALL_SECONDS)


def newer_python() -> str | None:
    """A Python that every SDK supports, on the path or installed by pyenv; None if this machine has none."""
    kept = sorted(Path.home().glob(".pyenv/versions/3.1[2-4].*/bin/python3"))
    for candidate in [*(found for name in PYTHONS if (found := shutil.which(name))), *map(str, kept)]:
        if subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


@asynccontextmanager
async def sdk_pods(
    python: str, program: str, folder: Path, pods: Mapping[int, Mapping[str, str]]
) -> AsyncIterator[None]:
    """Pods of one program of `tests/sdk`, which listen on these ports; each with its environment.

    They start in this order, one after the other.
    """
    log = folder / f"{Path(program).stem}.log"
    arguments = [str(ROOT / "tests/sdk" / program), json.dumps(list(pods.values()))]
    command = Command([python, str(ROOT / "tests/sdk/several.py"), *arguments], os.environ, folder)
    several = await start(Launch(command), ProcessContext(None, log))

    async def last_listens() -> bool:
        assert several.code is None, log.read_text()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", [*pods][-1])
        except OSError:
            return False
        writer.close()
        return True

    try:
        await eventually(last_listens, f"{program} listens", seconds=STARTING_SECONDS)
        yield
    finally:
        await several.kill()


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
