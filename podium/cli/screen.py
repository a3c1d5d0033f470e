"""What a command shows: tables for people, JSON for programs, or bare ids; remarks and progress go to stderr."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from podium.cli.plain import plain
from podium.cli.tables import Column, table

# Nobody misses a spinner that would only flash.
PROGRESS_AFTER_SECONDS = 0.7
# Into a file or a pipe goes all there is: programs cut for themselves.
UNLIMITED_WIDTH = 10_000


@dataclass
class Progressing:
    """Something that takes time; set `text` to say what it waits for now."""

    text: str


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: colours on a terminal only, and none at all under NO_COLOR."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else UNLIMITED_WIDTH
    return Console(
        stderr=stderr,
        width=width,
        markup=False,
        highlight=False,
        emoji=False,
        color_system=None if os.environ.get("NO_COLOR") or not stream.isatty() else "auto",
    )


@dataclass
class Screen:
    """Where one command shows its answer."""

    as_json: bool = False
    quiet: bool = False
    out: Console = field(default_factory=console)
    err: Console = field(default_factory=lambda: console(stderr=True))

    def json(self, answer: Any) -> None:  # noqa: ANN401 - JSON
        """The answer for programs."""
        sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")

    def rows(
        self, answer: Sequence[Any], ids: Sequence[str], columns: Sequence[Column], rows: Sequence[Sequence[str]]
    ) -> None:
        """A list: all of it as JSON, its ids alone, or a table."""
        if self.as_json:
            self.json(answer)
        elif self.quiet:
            sys.stdout.writelines(f"{plain(each)}\n" for each in ids)
        elif rows:
            self.show(table(columns, rows, self.out.width))

    def one(self, answer: Any, name: str, *shown: RenderableType) -> None:  # noqa: ANN401 - JSON
        """One thing: as JSON, its id alone, or what is there to be shown."""
        if self.as_json:
            self.json(answer)
        elif self.quiet:
            sys.stdout.write(f"{plain(name)}\n")
        else:
            self.show(*shown)

    def show(self, *shown: RenderableType) -> None:
        """Print for people; blanks at the end of lines are left out where no person looks."""
        if self.out.is_terminal:
            self.out.print(*shown, sep="\n")
            return
        with self.out.capture() as captured:
            self.out.print(*shown, sep="\n")
        sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())

    def remark(self, sentence: str) -> None:
        """Something worth knowing beside the answer."""
        if not (self.quiet or self.as_json):
            self.err.print(plain(sentence), style="dim", soft_wrap=True)

    @asynccontextmanager
    async def progress(self, text: str) -> AsyncIterator[Progressing]:
        """Say what is being done, and for how long, once it takes a moment; on a terminal only."""
        doing = Progressing(text)
        if self.quiet or not self.err.is_terminal:
            yield doing
            return
        spinning = asyncio.create_task(self._spin(doing))
        try:
            yield doing
        finally:
            spinning.cancel()
            with suppress(asyncio.CancelledError):
                await spinning

    async def _spin(self, doing: Progressing) -> None:
        spinner = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self.err,
            transient=True,
        )
        task = spinner.add_task(plain(doing.text))
        await asyncio.sleep(PROGRESS_AFTER_SECONDS)
        with spinner:
            while True:
                spinner.update(task, description=plain(doing.text))
                await asyncio.sleep(0.1)
