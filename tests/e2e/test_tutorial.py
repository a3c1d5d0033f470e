"""The tutorial: all blocks of commands in order, in one shell next to a real `podium up`."""

import asyncio
import os
import re
import shlex
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity

from podium.servers.ports import free_ports
from tests.support.processes import ROOT
from tests.support.waiting import eventually

TUTORIAL = ROOT / "docs" / "tutorial.md"
PORTS = ("8080", "8001", "8002")
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_FILE = re.compile(r"`(\w+\.py)`:\n\n\Z")
# Different in each run: times, durations, ids, and the width of columns.
VARYING = re.compile(
    r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d"
    r"|\b\d+[smh]( \d+[smh])?\b"
    r"|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
)
SPACES = re.compile(r"\s+")
CUT_OFF = " [...]"
# These only read. They are repeated, because a message may still be on its way.
READS = ("podium agents", "podium deployments", "podium rpc", "podium history", "podium registrations", "cat ")
START_SECONDS = 60
RUN_SECONDS = 60
LOOK_SECONDS = 20
CONSUMER, CONSUMER_QUEUE = "examples.consumer", "example.consumer"


@dataclass
class Step:
    """A block of commands or a program to save, the output shown below it, and its position."""

    language: str
    text: str
    line: int
    file: str = ""
    shown: str = ""

    @property
    def only_reads(self) -> bool:
        """Whether all commands only read, so that they can be repeated."""
        return all(line.startswith(READS) for line in self.text.splitlines())


def steps() -> list[Step]:
    """The blocks of the tutorial in order, each with the output shown below it."""
    document = TUTORIAL.read_text()
    found: list[Step] = []
    for block in BLOCK.finditer(document):
        if block["language"] == "text":
            found[-1].shown = block["text"]
        else:
            named = NAMED_FILE.search(document[: block.start()])
            line = document.count("\n", 0, block.start("text"))
            found.append(Step(block["language"], block["text"], line, named[1] if named else ""))
    return found


def comparable(line: str) -> str:
    """The line without the parts that differ in each run."""
    return SPACES.sub(" ", VARYING.sub("*", line)).strip()


def missing(shown: str, printed: str) -> str | None:
    """The first line of `shown` that was not printed in this order; None if all were."""
    lines = iter([comparable(line) for line in printed.splitlines()])
    for line in shown.splitlines():
        wanted = comparable(line.removesuffix(CUT_OFF))
        cut_off = line.endswith(CUT_OFF)
        if not any(printed_line.startswith(wanted) if cut_off else printed_line == wanted for printed_line in lines):
            return line
    return None


@dataclass
class Terminal:
    """A shell that runs one block after another."""

    shell: Process

    async def run(self, commands: str) -> tuple[str, bool]:
        """Run the commands; returns their output, and whether all succeeded."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        end = uuid4().hex
        # On a terminal, a line break follows the answer of an agent; in a pipe it does not.
        commands = re.sub(r"^podium rpc .*$", r"\g<0>\necho", commands, flags=re.MULTILINE)
        self.shell.stdin.write(f"failed=0\n{commands}printf '\\n%s %s\\n' {end} $failed\n".encode())
        printed = ""
        async with asyncio.timeout(RUN_SECONDS):
            while not (line := (await self.shell.stdout.readline()).decode()).startswith(end):
                assert line, f"the shell has ended:\n{printed}"
                printed += line
        return printed, line.split() == [end, "0"]


class Newcomer:
    """A reader with two terminals: one for `make up`, one for all other commands."""

    def __init__(self, folder: Path, terminal: Terminal) -> None:
        self._folder = folder
        self._terminal = terminal
        self._ports = dict(zip(PORTS, map(str, free_ports(PORTS).values()), strict=True))
        self._up: Process | None = None

    async def take(self, step: Step) -> None:
        """Run a block; fail if the output that the tutorial shows does not appear."""
        text = self._with_ports(step.text)
        if step.language == "python":
            (self._folder / step.file).write_text(text)
        elif text == "make up\n":
            await self.stop()
            self._check(step, await self._start(), went_well=True)
        elif step.only_reads:
            await self._repeat_until_shown(step, text)
        else:
            self._check(step, *await self._terminal.run(text))
        if CONSUMER in text:
            await eventually(self._consumer_is_bound, "the consumer has bound its queue")

    async def stop(self) -> None:
        """Press Ctrl-C in the first terminal."""
        if self._up is not None:
            self._up.send_signal(signal.SIGINT)
            printed, _ = await asyncio.wait_for(self._up.communicate(), START_SECONDS)
            assert self._up.returncode == 0, printed.decode()
            self._up = None

    async def _start(self) -> str:
        """Run `make up` in a prepared clone; returns its output until it is ready."""
        command = [sys.executable, "-m", "podium", "up", "--port", self._ports["8080"]]
        self._up = up = await asyncio.create_subprocess_exec(
            *command, cwd=self._folder, env=clean_environment(), stdin=PIPE, stdout=PIPE, stderr=STDOUT
        )
        assert up.stdout is not None
        printed = ""
        async with asyncio.timeout(START_SECONDS):
            while "Press Ctrl-C" not in printed:
                line = await up.stdout.readline()
                assert line, printed
                printed += line.decode()
        return printed

    async def _repeat_until_shown(self, step: Step, text: str) -> None:
        deadline = asyncio.get_running_loop().time() + LOOK_SECONDS
        while True:
            printed, went_well = await self._terminal.run(text)
            try:
                self._check(step, printed, went_well)
            except AssertionError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            else:
                return

    def _check(self, step: Step, printed: str, went_well: bool) -> None:  # noqa: FBT001 - as `run` returns it
        where = f"docs/tutorial.md, line {step.line}"
        lacking = missing(self._with_ports(step.shown), printed)
        assert lacking is None, f"{where}: this is shown:\n{lacking}\nand this was printed:\n{printed}"
        fails = any(line.startswith("podium: ") for line in step.shown.splitlines())
        assert went_well is not fails, f"{where}: ended {'well' if went_well else 'with an error'}:\n{printed}"

    def _with_ports(self, text: str) -> str:
        for shown, used in self._ports.items():
            text = re.sub(rf"\b{shown}\b", used, text)
        return text

    async def _consumer_is_bound(self) -> bool:
        """Whether the consumer has bound its queue: it does not get events from before that."""
        lines = (self._folder / ".podium" / "podium.env").read_text().splitlines()
        [url] = [line.partition("=")[2] for line in lines if line.startswith("PODIUM_AMQP_URL=")]
        async with await aio_pika.connect(url) as connection:
            try:
                queue = await (await connection.channel()).get_queue(CONSUMER_QUEUE)
            except ChannelNotFoundEntity:
                return False
            return bool(queue.declaration_result.consumer_count)


def clean_environment() -> dict[str, str]:
    """The environment without variables of Podium, of an agent or of a test runner."""
    ours = ("PODIUM_", "AGENT", "ACP_", "COLUMNS", "LINES")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture
def clone() -> Iterator[Path]:
    """A folder prepared like a clone after `make up`, which the servers' unprivileged account can enter."""
    with tempfile.TemporaryDirectory(prefix="podium-tutorial-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / ".venv").symlink_to(sys.prefix)
        yield folder


@asynccontextmanager
async def terminal_in(folder: Path) -> AsyncIterator[Terminal]:
    """A shell in this folder; all processes that it has started end with the block."""
    shell = await asyncio.create_subprocess_exec(
        "bash", "--noprofile", "--norc",
        cwd=folder, env=clean_environment(), stdin=PIPE, stdout=PIPE, stderr=STDOUT, start_new_session=True,
    )  # fmt: skip
    terminal = Terminal(shell)
    await terminal.run("trap 'failed=1' ERR\n")
    try:
        yield terminal
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        await shell.communicate()


@pytest.mark.timeout(300)  # half a minute on an idle machine
async def test_the_tutorial_works_as_written(clone: Path) -> None:
    """From an empty folder, each block runs, prints what the tutorial shows, and fails where the tutorial says so."""
    async with terminal_in(clone) as terminal:
        newcomer = Newcomer(clone, terminal)
        try:
            for step in steps():
                await newcomer.take(step)
        finally:
            await newcomer.stop()


def test_each_block_of_the_tutorial_is_tested() -> None:
    """No block is skipped: commands, programs with a file name, and output below commands."""
    fences = TUTORIAL.read_text().count("\n```") // 2
    found = steps()
    assert fences == len(found) + sum(bool(step.shown) for step in found)
    assert {step.language for step in found} == {"sh", "python"}
    assert all(bool(step.file) == (step.language == "python") for step in found)
    assert [shlex.split(step.text) for step in found if "make" in step.text] == [["make", "up"]] * 2


@pytest.mark.parametrize(
    ("shown", "printed", "lacking"),
    [
        ("a  1s\n", "x\na 20s\n", None),
        ("2026-11-23 10:05:33  bot\n", "2027-01-02 03:04:05 bot", None),
        ("a\nb\n", "b\na\n", "b"),
        ("greeter-v1\n", "greeter-v2\n", "greeter-v1"),
        ("It says [...]\n", "It says something.\n", None),
    ],
)
def test_output_is_compared_without_times(shown: str, printed: str, lacking: str | None) -> None:
    """Times and the width of columns may differ; names, numbers and the order of lines must not."""
    assert missing(shown, printed) == lacking
