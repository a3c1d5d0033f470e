"""Runs Podium's commands as users and scripts do: in processes of their own, also at a terminal."""

import asyncio
import gc
import io
import json
import os
import pty
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from podium.cli.main import main
from tests.support.processes import ROOT

TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Ran:
    """The output and the exit code of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output, parsed as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The message of a failure, which is one line on stderr."""
        (line,) = self.err.splitlines()
        assert line.startswith("podium: ")
        return line.removeprefix("podium: ")


class Screen(io.StringIO):
    """Text that a command takes for a terminal."""

    def isatty(self) -> bool:
        """As at a terminal."""
        return True


@dataclass(frozen=True)
class Terminal:
    """A shell in this directory, with these variables."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    async def started(self, *arguments: str, **variables: str) -> Process:
        """Start a command; its output goes to pipes."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "podium", *arguments,
            stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=self.folder, env=self._environment(variables),
        )  # fmt: skip

    async def run(self, *arguments: str, stdin: str = "", **variables: str) -> Ran:
        """Run a command to its end."""
        process = await self.started(*arguments, **variables)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    async def done(self, *arguments: str, stdin: str = "", **variables: str) -> Ran:
        """Run a command that must succeed."""
        ran = await self.run(*arguments, stdin=stdin, **variables)
        assert ran.code == 0, ran
        return ran

    async def quick(self, *arguments: str, **variables: str) -> Ran:
        """Run a command in this process, which takes a tenth of the time."""
        return await asyncio.to_thread(self._within, arguments, variables, io.StringIO)

    async def quickly_done(self, *arguments: str, **variables: str) -> Ran:
        """Run a command in this process that must succeed."""
        ran = await self.quick(*arguments, **variables)
        assert ran.code == 0, ran
        return ran

    async def displayed(self, *arguments: str, **variables: str) -> Ran:
        """Run a command in this process, at what it takes for a terminal."""
        return await asyncio.to_thread(self._within, arguments, variables, Screen)

    def _within(self, arguments: Sequence[str], variables: Mapping[str, str], stream: type[io.StringIO]) -> Ran:
        out, err = stream(), stream()
        with (
            _without_collections(),
            patch.dict(os.environ, self._environment(variables), clear=True),
            patch("sys.stdin", io.StringIO()),
            chdir(self.folder),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main(arguments)
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, out.getvalue(), err.getvalue())

    @asynccontextmanager
    async def typed(self, *arguments: str, **variables: str) -> AsyncIterator["Typed"]:
        """Start a command at a pseudo-terminal of 60 columns."""
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "podium", *arguments,
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=self.folder,
            env=self._environment({"TERM": "xterm-256color", "COLUMNS": "60", **variables}),
        )  # fmt: skip
        os.close(theirs)
        os.set_blocking(ours, False)
        try:
            yield Typed(process, ours)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            os.close(ours)

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        ours = ("PODIUM_", "AGENT", "ACP_", "GIT_", "NO_COLOR", "COLUMNS", "TRACEPARENT", "PYTHONUNBUFFERED")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {**inherited, "PYTHONPATH": str(ROOT), **self.variables, **variables}


@contextmanager
def _without_collections() -> Iterator[None]:
    """Nothing is collected in this thread: aio-pika closes forgotten connections in the loop of whichever collects.

    Afterwards collections are as often as before: `main` makes them rare for its process.
    """
    threshold = gc.get_threshold()
    gc.disable()
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.enable()


@dataclass
class Typed:
    """A command at a terminal, and its whole output."""

    process: Process
    terminal: int
    shown: str = ""

    async def until(self, words: str) -> None:
        """Wait until the output contains these words."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while words not in self.shown:
                self._read()
                await asyncio.sleep(0.02)

    def type(self, text: str) -> None:
        """Type this text."""
        os.write(self.terminal, text.encode())

    async def end(self) -> int:
        """Wait for the command to end. Returns its exit code."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while self.process.returncode is None:
                self._read()
                await asyncio.sleep(0.02)
        self._read()
        return self.process.returncode

    def _read(self) -> None:
        # There is no output now, or the command has closed its end.
        with suppress(BlockingIOError, OSError):
            while chunk := os.read(self.terminal, 65536):
                self.shown += chunk.decode(errors="replace").replace("\r\n", "\n")
