"""`podium up` as a separate process, started and stopped as a user does it."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.processes import ROOT
from tests.support.waiting import eventually

START_SECONDS = 60


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without any setting of Podium."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PODIUM_")}, **more}


async def podium(*arguments: str, **environment: str) -> Process:
    """A `podium` command that has been started."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "podium", *arguments, stdout=PIPE, stderr=STDOUT, cwd=ROOT,
        env=clean_environment(**environment),
    )  # fmt: skip


async def output(process: Process) -> str:
    """The whole output of a command, once it has ended."""
    printed, _ = await asyncio.wait_for(process.communicate(), START_SECONDS)
    return printed.decode()


async def line_with(process: Process, words: str) -> str:
    """The first line that contains these words; fails with the output if the command ends before."""
    assert process.stdout is not None
    printed = ""
    async with asyncio.timeout(START_SECONDS):
        while line := (await process.stdout.readline()).decode():
            printed += line
            if words in line:
                return line
    raise AssertionError(f"ended without {words!r}:\n{printed}")


@asynccontextmanager
async def up(data_dir: Path, port: int, *arguments: str, **environment: str) -> AsyncIterator[Process]:
    """`podium up`, ready; killed afterwards if it still runs."""
    process = await podium("up", "--data-dir", str(data_dir), "--port", str(port), *arguments, **environment)
    try:
        await line_with(process, "Press Ctrl-C")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await output(process)


def processes_of(*marks: str) -> set[int]:
    """Processes with one of these texts in their command line or environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                described = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(mark.encode() in described for mark in marks):
                found.add(int(entry.name))
    return found


async def all_gone(*marks: str) -> None:
    """Wait until no such process is left."""

    async def gone() -> bool:
        return not processes_of(*marks)

    await eventually(gone, "no process is left", seconds=30)
