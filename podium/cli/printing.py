"""Printing an agent's answer: the bytes as they are into a pipe, harmless text onto a terminal."""

import codecs
import os
import sys
from typing import BinaryIO, NoReturn, TextIO

import typer

# What a terminal would obey rather than show; tabs and line ends stay.
_OBEYED = [*range(9), *range(11, 32), 127, *range(0x80, 0xA0)]
_HARMLESS = dict.fromkeys(_OBEYED, " ")


class Printer:
    """Prints chunks as they come, each at once."""

    def __init__(self, text: TextIO | None = None) -> None:
        self._text = text or sys.stdout
        self._terminal = self._text.isatty()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ended_line = True

    def print(self, chunk: bytes) -> None:
        """The next chunk."""
        if not self._terminal:
            try:
                self._bytes().write(chunk)
                self._bytes().flush()
            except BrokenPipeError:
                read_enough()
            return
        shown = self._decoder.decode(chunk).replace("\r\n", "\n").translate(_HARMLESS)
        if shown:
            self._ended_line = shown.endswith("\n")
        self._text.write(shown)
        self._text.flush()

    def end(self) -> None:
        """Leave the cursor of a terminal on a line of its own."""
        if not self._ended_line:
            self._text.write("\n")
            self._text.flush()

    def _bytes(self) -> BinaryIO:
        return self._text.buffer


def read_enough() -> NoReturn:
    """End the command, which is no failure: whoever read its output has had enough, as `head` has."""
    # What is left in the buffer has nowhere to go when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit
